"""The release: what passed the gates, as the phone gets it.

Everything but the GGUF files is written here; they are fetched only when the release is not in the store yet, so a
rerun of a finished run moves no large file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.files import hash_file
from pocketvlm.artifacts.manifest import FileEntry
from pocketvlm.artifacts.release import Release, ReleasedType, ReleaseFile, content_version, publish_release
from pocketvlm.artifacts.run_record import run_id
from pocketvlm.llamacpp.build import read_pin
from pocketvlm.report.data import ReportData
from pocketvlm.report.render import render_card, render_report
from pocketvlm.stages.evaluation.gather import base_name
from pocketvlm.stages.stage import Work

Role = Literal["text_model", "mmproj", "prompt", "grammar", "golden", "model_card", "report"]
SAMPLING = {"temperature": 0.0, "samplers": ["temperature"], "cache_prompt": False}
"""What decided the answer of every measured request, besides prompt, grammar and limit: greedy. The requests also asked for
the log-probabilities (`n_probs`), which changes no answer and makes the measured times a little longer than the app's."""


def release(work: Work, report: Artifact, data: ReportData) -> Release:
    """Publishes the release of a run whose gates passed, or finds it published. Idempotent."""
    folder = work.scratch / "release"
    folder.mkdir()
    files = [*_write(folder, report, data), *_models(work, data)]
    draft = _describe(work, data, files)
    version = draft.version or content_version(draft)
    if not any(True for _ in work.store.list(f"releases/{draft.name}/{version}/release.json")):
        work.inputs["quantiser"].fetch(folder, [file.name for file in files if file.type])
    return publish_release(work.store, draft, folder, _measurements(data))


def _write(folder: Path, report: Artifact, data: ReportData) -> list[ReleaseFile]:
    """The small files, in `folder`."""
    report.fetch(folder, [entry.name for entry in report.files if entry.name.startswith("golden/")])
    texts: list[tuple[str, Role, str]] = [
        ("prompt.txt", "prompt", data.prompt),
        ("grammar.gbnf", "grammar", data.grammar),
        ("MODEL_CARD.md", "model_card", render_card(data)),
        ("report.html", "report", render_report(data.without_times())),
    ]
    for name, _, text in texts:
        (folder / name).write_bytes(text.encode())
    names: list[tuple[str, Role]] = [(name, role) for name, role, _ in texts]
    names += [(f"golden/{path.name}", "golden") for path in sorted((folder / "golden").iterdir())]
    return [_file(hash_file(folder / name, name), role) for name, role in names]


def _file(entry: FileEntry, role: Role, kind: str | None = None) -> ReleaseFile:
    return ReleaseFile(name=entry.name, size=entry.size, sha256=entry.sha256, role=role, type=kind)


def _models(work: Work, data: ReportData) -> list[ReleaseFile]:
    """The GGUF files that were measured, as the quantiser's manifest lists them: nothing is hashed again."""
    entries = {entry.name: entry for entry in work.inputs["quantiser"].files}
    shipped = [data.metrics.types[name] for name in data.shipped]
    texts = [_file(entries[pair.text], "text_model", _kind(pair.text)) for pair in shipped]
    return [*texts, *(_file(entries[name], "mmproj", _kind(name)) for name in sorted({pair.mmproj for pair in shipped}))]


def _kind(name: str) -> str:
    return Path(name).stem.partition("-")[2]


def _describe(work: Work, data: ReportData, files: list[ReleaseFile]) -> Release:
    recipe, metrics = work.recipe, data.metrics
    types = {
        name: ReleasedType(text_model=pair.text, mmproj=pair.mmproj, accuracy=pair.accuracy, accuracy_interval=pair.interval,
                           agreement=pair.agreement)
        for name, pair in ((name, metrics.types[name]) for name in data.shipped)
    }  # fmt: skip
    return Release(
        name=recipe.name, version=recipe.version or "", run=run_id(recipe), family=metrics.family, base=base_name(work),
        revision=recipe.student.revision, device=recipe.device.model_dump(), classes=metrics.classes,
        prompt_tokens=metrics.types[data.shipped[0]].prompt_tokens[1], task=recipe.task.shipped(),
        sampling={**SAMPLING, "max_new_tokens": recipe.device.max_new_tokens}, answer_threshold=recipe.evaluator.answer_threshold,
        temperature=metrics.temperature, llama_cpp=read_pin().commit, types=types, files=files,
    )  # fmt: skip


def _measurements(data: ReportData) -> dict[str, object]:
    return {"latency": {name: dict(row) for name, row in data.times.latency.items()}} if data.times else {}
