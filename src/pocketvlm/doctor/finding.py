"""What the doctor says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Literal

from pocketvlm.errors import DataError

Severity = Literal["fault", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("fault", "warning", "note")
"""fault: the phone answers wrongly, or not at all. warning: it costs much, or it does in some builds. note: worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One known fault, where it was found."""

    name: str
    """Short and stable, for scripts: `mmproj-missing`."""
    severity: Severity
    where: str
    """File, and the key in it."""
    wrong: str
    """What is wrong there."""
    effect: str
    """What it does, on the phone or on the way there."""
    remedy: str
    """What to do."""


@dataclass
class Diagnosis:
    """All that was found in a path, and what could not be looked at."""

    what: str
    """What the path holds, in words."""
    findings: list[Finding] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)
    """What these files alone cannot tell, each with what to give the doctor besides."""

    @property
    def exit_code(self) -> int:
        """3, that of DataError, when there is a fault; warnings and notes are none."""
        return DataError.exit_code if any(finding.severity == "fault" for finding in self.findings) else 0

    def add(self, findings: Iterator[Finding]) -> None:
        """Appends them; what is there already is not said twice (two pairs may share one mmproj)."""
        self.findings += [finding for finding in dict.fromkeys(findings) if finding not in self.findings]

    def sort(self) -> None:
        """Faults first; within a severity the order of the checks stays."""
        self.findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))


def render(diagnosis: Diagnosis) -> str:
    """The text that `pocketvlm doctor` prints."""
    lines = [diagnosis.what]
    for finding in diagnosis.findings:
        lines += ["", f"{finding.severity}: {finding.where}: {finding.wrong} [{finding.name}]",
                  f"  effect: {finding.effect}", f"  remedy: {finding.remedy}"]  # fmt: skip
    lines += ["", *(f"not looked at: {text}" for text in diagnosis.unseen)] if diagnosis.unseen else []
    counts = {severity: sum(finding.severity == severity for finding in diagnosis.findings) for severity in SEVERITIES}
    said = ", ".join(f"{count} {severity}{'s' if count > 1 else ''}" for severity, count in counts.items() if count)
    return "\n".join([*lines, "", said or "no known fault"])


def render_json(diagnosis: Diagnosis) -> str:
    """The same for programs."""
    return json.dumps({"exit_code": diagnosis.exit_code, **asdict(diagnosis)}, indent=1, ensure_ascii=False)
