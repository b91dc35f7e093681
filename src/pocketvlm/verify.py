"""Checks a pulled release: every sha256, then the golden images on the pinned llama.cpp.

It replays what the app does, with the bytes that the app has: prompt.txt, grammar.gbnf and each type's pair of files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketvlm.artifacts.files import hash_file
from pocketvlm.artifacts.release import Release, parse_release
from pocketvlm.errors import Corrupt, GateRefused, UserError
from pocketvlm.llamacpp.toolchain import Toolchain
from pocketvlm.phone import SPARE_TOKENS, Pair, released_question

CONFIDENCE_TOLERANCE = 0.02
"""Sound CPUs differ in the low bits of a sum. The golden images are those that every type is surest of, so 0.02 is wide."""
GOLDEN = "golden/golden.json"


@dataclass(frozen=True)
class VerifyResult:
    """What was checked; all of it is right, or `verify` had raised."""

    release: Release
    types: list[str]
    """Types whose pair is in the folder."""
    files: int
    images: int
    confidence_gap: float
    """Largest difference from the confidence that was measured."""

    def __str__(self) -> str:
        return (
            f"{self.release.name} {self.release.version} is sound: {self.files} files have their sha256, and "
            f"{', '.join(self.types)} answer {self.images} golden images as measured (within {self.confidence_gap:.4f})"
        )


def verify(folder: Path, toolchain: Toolchain, threads: int) -> VerifyResult:
    """Raises UserError for a folder without a release, Corrupt for wrong bytes, GateRefused for other answers.

    Types that were left out by `pull --types` are not asked; at least one must be there.
    """
    release = _read_release(folder)
    types = release.types_in(folder)
    left_out = {release.types[name].text_model for name in release.types if name not in types}
    left_out |= {pair.mmproj for pair in release.types.values()} - {release.types[name].mmproj for name in types}
    checked = _check_files(folder, release, left_out)
    question = released_question(folder, release)
    context = release.prompt_tokens + question.max_new_tokens + SPARE_TOKENS
    golden: list[dict[str, Any]] = json.loads((folder / GOLDEN).read_bytes())["images"]
    problems: list[str] = []
    gap = 0.0
    for name in types:
        pair = release.types[name]
        files = folder / pair.text_model, folder / pair.mmproj
        with Pair(toolchain, *files, question, threads=threads, context_tokens=context) as asked:
            for row in golden:
                found, problem = _replay(asked, folder, name, row)
                gap = max(gap, found)
                problems += problem
    if problems:
        builds = f"llama.cpp {release.llama_cpp[:9]} (here: {toolchain.commit[:9]})"
        lines = "\n  ".join(problems)
        raise GateRefused(f"{release.name} {release.version} does not answer as it was measured on {builds}:\n  {lines}")
    return VerifyResult(release, types, checked, len(golden), gap)


def _read_release(folder: Path) -> Release:
    path = folder / "release.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no release.json; pull a release into it with `pocketvlm pull NAME --to {folder}`")
    return parse_release(path.read_bytes(), str(path))


def _check_files(folder: Path, release: Release, left_out: set[str]) -> int:
    wrong: list[str] = []
    checked = 0
    for file in release.files:
        if file.name in left_out and not (folder / file.name).exists():
            continue
        path = folder / file.name
        checked += 1
        if not path.is_file():
            wrong.append(f"{file.name} is missing")
        elif (found := hash_file(path, file.name).sha256) != file.sha256:
            wrong.append(f"{file.name} has sha256 {found[:12]}..., not {file.sha256[:12]}...")
    if wrong:
        raise Corrupt(f"{folder} is not {release.name} {release.version}; pull it again:\n  " + "\n  ".join(wrong))
    return checked


def _replay(pair: Pair, folder: Path, name: str, row: dict[str, Any]) -> tuple[float, list[str]]:
    """Difference of confidence, and what is wrong with the answer to one golden image."""
    expected = row["types"][name]
    reply = pair.ask((folder / "golden" / row["file"]).read_bytes())
    answer, confidence = reply.text.removeprefix(pair.lead), reply.confidence()
    gap = abs(confidence - expected["confidence"])
    if answer != expected["answer"]:
        return gap, [f"{name}, golden/{row['file']}: answers {answer!r}, was measured as {expected['answer']!r}"]
    if gap > CONFIDENCE_TOLERANCE:
        return gap, [f"{name}, golden/{row['file']}: is {confidence:.4f} sure of {answer!r}, was {expected['confidence']:.4f}"]
    return gap, []
