"""The sample as a project of Label Studio: tasks with the pictures inside, so that it needs no server of files.

What it exports as JSON or JSON-MIN is read by artifacts/corrections.py: the fields of `data` come back with every annotation.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as xml

from pocketvlm.artifacts.corrections import LABEL, NOTE, none_choice
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError
from pocketvlm.review.sample import Item, Sample, take_sample
from pocketvlm.run_file import RunFile

TASKS, CONFIG = "tasks.json", "labels.xml"


def write_label_studio(run_file: RunFile, environment: Environment, to: Path, *, images: int) -> Path:
    """Writes `tasks.json`, to be imported, and `labels.xml`, to be pasted as the labelling interface; returns `to`.

    Raises as `take_sample` does, and UserError when the files cannot be written.
    """
    sample = take_sample(run_file, environment, images)
    try:
        to.mkdir(parents=True, exist_ok=True)
        (to / TASKS).write_text(json.dumps([_task(item, sample) for item in sample.items], indent=1), encoding="utf-8")
        (to / CONFIG).write_text(labelling_config(sample), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{to}: cannot be written ({error.strerror}); say another folder with --label-studio DIR") from error
    return to


def labelling_config(sample: Sample) -> str:
    """The labelling interface as XML: the picture, what is known of it, one choice of the classes, or the fields as JSON to be
    corrected (`null`: none fit), and a note."""
    view = xml.Element("View")
    xml.SubElement(view, "Image", name="image", value="$image", zoom="true")
    xml.SubElement(view, "Header", value="$known")
    xml.SubElement(view, "Text", name="reason", value="$reason")
    if sample.fields:
        area = xml.SubElement(view, "TextArea", name=LABEL, toName="image", rows="4", maxSubmissions="1", required="true")
        area.set("editable", "true")
    else:
        _add_choices(view, sample)
    xml.SubElement(view, "TextArea", name=NOTE, toName="image", rows="2", maxSubmissions="1", placeholder="Note")
    xml.indent(view)
    return xml.tostring(view, encoding="unicode") + "\n"


def _add_choices(view: xml.Element, sample: Sample) -> None:
    choices = xml.SubElement(view, "Choices", name=LABEL, toName="image", choice="single", showInline="true", required="true")
    for name in [*sample.classes, none_choice(sample.classes)]:
        xml.SubElement(choices, "Choice", value=name)


def _task(item: Item, sample: Sample) -> dict[str, Any]:
    """A task whose prediction is the label, so that whoever agrees has nothing to click but Submit."""
    row = item.row
    kind, value = ("textarea", {"text": [row.label]}) if sample.fields else ("choices", {"choices": [row.label]})
    prediction: dict[str, Any] = {
        "model_version": row.teacher_model or row.source,
        "result": [{"id": row.sha256[:10], "from_name": LABEL, "to_name": "image", "type": kind, "value": value}],
    }  # fmt: skip
    if row.teacher_confidence is not None:
        prediction["score"] = row.teacher_confidence
    return {
        "data": {
            "image": item.picture, "sha256": row.sha256, "source_id": row.source_id, "was": row.label,
            "known": _known(item, sample), "reason": row.teacher_reason or "", "author": row.author or "",
            "licence": row.licence or "",
            "run": sample.run, "dataset": sample.dataset,
        },
        "predictions": [prediction],
    }  # fmt: skip


def _known(item: Item, sample: Sample) -> str:
    row = item.row
    sure = "" if row.teacher_confidence is None else f", confidence {row.teacher_confidence:.2f}"
    votes = "" if row.teacher_votes is None or sample.votes < 2 else f", {row.teacher_votes} of {sample.votes} votes"
    return f"{row.label}{sure}{votes}"
