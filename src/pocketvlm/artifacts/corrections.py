"""Labels that a person has checked: the file that `pocketvlm review` saves, or what Label Studio exports.

Every image that somebody looked at is listed, confirmed or corrected, so that the accuracy of the labels has a denominator.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pocketvlm.errors import RunFileError
from pocketvlm.intervals import wilson
from pocketvlm.run_file import ExtractField
from pocketvlm.run_file.values import parse, read_label

FORMAT = "pocketvlm-corrections/1"
NONE = "none"
"""What `Corrections.label` gives where no label fits; `null` in the file."""
LABEL, NOTE = "label", "note"
"""Names of the choice and of the text that Label Studio asks for."""
SHOWN_PROBLEMS = 10
"""Lines of an error; one wrong class name can be in every item."""


@dataclass(frozen=True)
class Correction:
    """What a person said of one image."""

    sha256: str
    """Of the original file's bytes, as in the dataset."""
    label: str
    """A class name, or the fields of an `extract` task as compact JSON; or NONE."""
    was: str | None = None
    """The label that was shown; None where the file does not say."""
    source_id: str = ""
    note: str = ""


class Corrections:
    """Found by the sha256 of the original file."""

    def __init__(self, items: Iterable[Correction]) -> None:
        self._items: Mapping[str, Correction] = {item.sha256: item for item in items}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Correction]:
        return iter(self._items.values())

    def label(self, sha256: str) -> str | None:
        """A label of the task, or NONE; None: nobody has looked at this image."""
        found = self._items.get(sha256)
        return None if found is None else found.label

    def unknown(self, seen: Collection[str]) -> int:
        """Images that are not among `seen`, such as those of another sample of the source."""
        return sum(sha256 not in seen for sha256 in self._items)

    def fingerprint(self) -> str:
        """Sha256 (hex) over what is decided: neither notes nor the order of the file count."""
        lines = sorted(f"{item.sha256} {item.label}\n" for item in self)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


ReadLabel = Callable[[Any], str]
"""The label, or NONE, that something in a file means. Raises ValueError, which says what is wrong."""


def read_corrections(
    path: Path, classes: Sequence[str], fields: Mapping[str, ExtractField] | None = None, key: str = "run.labeller.corrections"
) -> Corrections:
    """Reads either format: class names, or for a task with `fields` their values, as an object or as its JSON text.

    Images that a run does not have are fine. Raises RunFileError, with `key` first, for a file that cannot be read, a label that
    is none of the task's (naming the nearest class), and an image under two labels.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RunFileError(f"{key}: {path}: cannot be read ({error.strerror}); name the file that `pocketvlm review` saved, "
                           "relative to the run file") from error  # fmt: skip
    except (ValueError, RecursionError) as error:  # ValueError: neither UTF-8 nor JSON
        raise RunFileError(f"{key}: {path}: is not JSON ({error}); save it again, or export it as JSON") from error
    problems: list[str] = []
    read = partial(_read_fields, fields) if fields else _class_reader(classes)
    found = list(_checked(_items(data, f"{key}: {path}"), read, problems))
    problems += _contradictions(found)
    if problems:
        more = [f"and {len(problems) - SHOWN_PROBLEMS} more"] if len(problems) > SHOWN_PROBLEMS else []
        raise RunFileError("\n".join(f"{key}: {path}: {line}" for line in [*problems[:SHOWN_PROBLEMS], *more]))
    return Corrections(item for _, item in found)


def accuracy_of(pairs: Iterable[tuple[str | None, str]]) -> dict[str, Any]:
    """How often labels are what a person says, as facts of a dataset.

    A pair is the label, or NONE, and what the person says, likewise. A label None, no answer at all, is `unanswered` and not
    among the `images`. `interval` holds 95 % (Wilson); `confusion` is rows of label, person's label, images.
    """
    counts = Counter(pairs)
    answered = {(label, person): count for (label, person), count in counts.items() if label is not None}
    images = sum(answered.values())
    right = sum(count for (label, person), count in answered.items() if label == person)
    return {
        "images": images,
        "right": right,
        "accuracy": round(right / images, 6) if images else None,
        "interval": [round(bound, 6) for bound in wilson(right, images)],
        "unanswered": sum(counts.values()) - images,
        "confusion": [[label, person, count] for (label, person), count in sorted(answered.items())],
    }


def none_choice(classes: Iterable[str]) -> str:
    """How Label Studio shows NONE: it has to be the name of no class."""
    taken, name = {_folded(label) for label in classes}, "None of these"
    while _folded(name) in taken:
        name = f"[{name}]"
    return name


Found = tuple[str, Mapping[str, Any]]
"""Where it stands, and `sha256`, `label`, `was`, `source_id`, `note` as the file has them."""


def _items(data: Any, where: str) -> list[Found]:
    if isinstance(data, dict):
        if data.get("format") != FORMAT or not isinstance(data.get("items"), list):
            raise RunFileError(f"{where}: format is {str(data.get('format'))[:60]!r} where {FORMAT!r} with a list of items was "
                               "expected; save it again with the page of this version")  # fmt: skip
        return [(f"items[{index}]", item if isinstance(item, dict) else {}) for index, item in enumerate(data["items"])]
    if not isinstance(data, list):
        raise RunFileError(f"{where}: holds neither corrections nor a list of Label Studio's tasks; export it as JSON")
    tasks = [(f"task {index}", task) for index, task in enumerate(data, start=1) if isinstance(task, dict)]
    found = [item for place, task in tasks for item in _of_task(place, task)]
    if not found:
        raise RunFileError(f"{where}: no task has an annotation named `{LABEL}`; annotate some, or use the "
                           "labels.xml that `pocketvlm review --label-studio` wrote")  # fmt: skip
    return found


def _of_task(where: str, task: dict[str, Any]) -> Iterator[Found]:
    """What each annotation of a task says; a task that is skipped or not annotated yet gives nothing.

    JSON has a task with all its annotations, JSON-MIN one flat record for each annotation.
    """
    if "annotations" not in task and "data" not in task:
        if (chosen := _choices(task.get(LABEL))) is not None:
            yield where, {**task, LABEL: chosen}
        return
    data = task["data"] if isinstance(task.get("data"), dict) else {}
    given = [note for note in _dicts(task.get("annotations")) if not note.get("was_cancelled")]
    # Where annotators differ, the one that somebody marked as ground truth decides.
    for annotation in [note for note in given if note.get("ground_truth")] or given:
        results = {str(result.get("from_name")): result.get("value") for result in _dicts(annotation.get("result"))}
        if (chosen := _choices(results.get(LABEL))) is not None:
            yield where, {**data, LABEL: chosen, NOTE: _text(results.get(NOTE))}


def _choices(value: Any) -> Any:
    """The one choice or text, or all of them if they are not one; None where there is none."""
    chosen = value.get("choices", value.get("text")) if isinstance(value, dict) else value
    if isinstance(chosen, list):
        return chosen[0] if len(chosen) == 1 else chosen or None
    return chosen


def _text(value: Any) -> str:
    texts = value.get("text") if isinstance(value, dict) else None
    return "\n".join(map(str, texts)) if isinstance(texts, list) else str(texts or "")


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _class_reader(classes: Sequence[str]) -> ReadLabel:
    names = {_folded(name): name for name in classes}
    none = _folded(none_choice(classes))

    def read(label: Any) -> str:
        if label is None or _folded(label) == none:
            return NONE
        if (found := names.get(_folded(label))) is not None:
            return found
        near = difflib.get_close_matches(_folded(label), names, n=1, cutoff=0.5)
        hint = f"; did you mean `{names[near[0]]}`?" if near else "; correct it"
        raise ValueError(f"{str(label)[:100]!r} is not in run.task.classes{hint}")

    return read


def _read_fields(fields: Mapping[str, ExtractField], label: Any) -> str:
    try:
        values = parse(label) if isinstance(label, str) else label
        return NONE if values is None else read_label(fields, values)
    except ValueError as error:
        raise ValueError(f"{str(label)[:100]!r} is not what run.task.fields allow: {error}; correct it") from error


def _checked(items: Iterable[Found], read: ReadLabel, problems: list[str]) -> Iterator[tuple[str, Correction]]:
    for where, item in items:
        sha256 = item.get("sha256")
        if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            problems.append(f"{where}: sha256 is missing or not 64 hex digits; start from a file that `pocketvlm review` wrote")
            continue
        try:
            label = read(item.get(LABEL, ""))
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        was, source_id, note = (item.get(name) for name in ("was", "source_id", NOTE))
        yield where, Correction(sha256, label, None if was is None else str(was), str(source_id or ""), str(note or ""))


def _contradictions(found: Sequence[tuple[str, Correction]]) -> Iterator[str]:
    first: dict[str, tuple[str, Correction]] = {}
    for where, item in found:
        before, other = first.setdefault(item.sha256, (where, item))
        if other.label != item.label:
            yield (f"{where}: {item.source_id or item.sha256[:16]} is {item.label}, and {other.label} in {before}; "
                   "remove one of the two, or mark one as ground truth in Label Studio")  # fmt: skip


def _folded(label: object) -> str:
    return " ".join(str(label).split()).casefold()
