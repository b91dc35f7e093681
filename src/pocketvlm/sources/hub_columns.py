"""Which columns of a dataset hold the image and its label, and which class of the task a label means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pocketvlm.errors import RunFileError
from pocketvlm.run_file import HubSource
from pocketvlm.sources.field_labels import FieldLabels, field_labels
from pocketvlm.sources.record import ClassNames, Context, Problem, hint

LABEL_NAMES = ("label", "labels", "class", "category", "cls")
"""Columns of text or numbers that are taken for labels; `cls` is WebDataset's."""
KEY = "run.labeller.source"


@dataclass(frozen=True)
class Columns:
    """The columns that are read of a row, and what its label may mean."""

    image: str
    label: str | None
    names: tuple[str, ...] | None
    """Class names of the dataset by their number; None: the column holds the label itself."""
    classes: ClassNames
    mapped: Mapping[str, str]
    """`class_names` of the run file."""
    fields: FieldLabels | None = None
    """Where the fields of an `extract` task are: in `label`, or each in a column of its own."""

    def wanted(self) -> list[str]:
        of_label = [self.label] if self.label is not None else self.fields.columns if self.fields is not None else []
        return list(dict.fromkeys([self.image, *of_label]))

    def label_of(self, cells: Mapping[str, Any]) -> str | Problem:
        """The label of a row; an empty string where labels are not read."""
        if self.fields is None:
            return self.class_of(cells.get(self.label or ""))
        return self.fields.of_cells(cells) if self.label is None else self.fields.of_cell(self.label, cells.get(self.label))

    def class_of(self, value: Any) -> str | Problem:
        """The task's class that a cell of the label's column means; an empty string where labels are not read."""
        if self.label is None:
            return ""
        if value is None or value == "" or (self.names is not None and value == -1):
            return Problem("missing_field", f"{self.label} is empty")
        if not isinstance(value, str | int) or isinstance(value, bool):
            return Problem("unknown_label", f"{self.label} holds a {type(value).__name__}, not a text or a number")
        if self.names is not None and isinstance(value, int):
            if not 0 <= value < len(self.names):
                return Problem("unknown_label", f"{self.label} is {value}, and the dataset has {len(self.names)} classes")
            written, number = self.names[value], str(value)
        else:
            written = number = str(value)
        found = self.mapped.get(written) or self.mapped.get(number) or self.classes.match(written)
        if found is None:
            shown = written[:100]
            return Problem("unknown_label", f"{self.label} is {shown}, which is not in run.task.classes"
                                            f"{self.classes.hint(shown)}; map it in class_names")
        return found


def check_class_names(source: HubSource, context: Context) -> None:
    """Raises RunFileError for a value of `class_names` that is no class of the task."""
    classes = ClassNames(context.classes)
    lines = [
        f"{KEY}.class_names.{written}: {name} is not in run.task.classes{classes.hint(name)}"
        for written, name in source.class_names.items() if classes.match(name) is None
    ]  # fmt: skip
    if lines:
        raise RunFileError("\n".join(lines))


def find_columns(schema: pa.Schema, card: Mapping[str, Any], source: HubSource, context: Context) -> Columns:
    """The columns of a dataset. Raises RunFileError when one is not there, is ambiguous, or its classes are not the task's."""
    features = {**_card_features(card), **_schema_features(schema)}
    classes = ClassNames(context.classes)
    image = _image(schema, features, source)
    if (fields := field_labels(source.field_columns, context)) is not None:
        return Columns(image, _fields_column(schema, source, fields), None, classes, {}, fields)
    label = _label(schema, features, source) if context.labelled else None
    names = _class_names(features.get(label)) if label is not None else None
    mapped = {written: classes.match(name) or name for written, name in source.class_names.items()}
    columns = Columns(image, label, names, classes, mapped)
    if names is not None:
        _check_all_known(columns, names)
    return columns


def _image(schema: pa.Schema, features: Mapping[str, Any], source: HubSource) -> str:
    key, there = f"{KEY}.image_column", ", ".join(schema.names)
    if (chosen := source.image_column) is not None:
        if chosen not in schema.names:
            raise RunFileError(f"{key}: the dataset has no column {chosen}, but {there}{hint(chosen, schema.names)}")
        if not _holds_images(schema.field(chosen).type):
            raise RunFileError(f"{key}: {chosen} holds {_kind(schema, chosen)}, not images; {_INSIDE}")
        return chosen
    found: list[str] = [
        name for name in schema.names
        if _type_of(features.get(name)) == "Image" and _holds_images(schema.field(name).type)
    ] or [name for name in schema.names if features.get(name) is None and _holds_images(schema.field(name).type)]  # fmt: skip
    if len(found) > 1:
        raise RunFileError(f"{key}: the dataset has several columns of images, {', '.join(found)}; name one")
    if not found:
        raise RunFileError(f"{key}: the dataset has no column of images, but "
                           f"{', '.join(f'{name} ({_kind(schema, name)})' for name in schema.names)}; {_INSIDE}")
    return found[0]


_INSIDE = "PocketVLM reads images that lie in the dataset and follows no URLs that stand in it"


def _holds_images(kind: pa.DataType) -> bool:
    """The bytes themselves, or a struct of `bytes` and `path`."""
    if pa.types.is_struct(kind):
        kinds = {field.name: field.type for field in kind}
        return "bytes" in kinds and _is_binary(kinds["bytes"])
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))


def _kind(schema: pa.Schema, name: str) -> str:
    kind = schema.field(name).type
    if _is_text(kind):
        return "text"
    return "a list" if pa.types.is_nested(kind) and not pa.types.is_struct(kind) else str(kind)[:40]


def _label(schema: pa.Schema, features: Mapping[str, Any], source: HubSource) -> str:
    key, there = f"{KEY}.label_column", ", ".join(schema.names)
    if (chosen := source.label_column) is not None:
        if chosen not in schema.names:
            raise RunFileError(f"{key}: the dataset has no column {chosen}, but {there}{hint(chosen, schema.names)}")
        if not _holds_labels(schema.field(chosen).type):
            raise RunFileError(f"{key}: {chosen} holds {_kind(schema, chosen)}, not one text or number for each image")
        return chosen
    labels: list[str] = [name for name in schema.names if _class_names(features.get(name)) is not None]
    if not labels:
        labels = [name for name in LABEL_NAMES if name in schema.names and _holds_labels(schema.field(name).type)][:1]
    elif len(labels) > 1:
        labels = [name for name in LABEL_NAMES if name in labels][:1] or labels
    if len(labels) > 1:
        raise RunFileError(f"{key}: the dataset has several columns of class labels, {', '.join(labels)}; name one")
    if not labels:
        raise RunFileError(f"{key}: the dataset has no column of labels, but {there}; name it, or let a teacher label")
    return labels[0]


def _fields_column(schema: pa.Schema, source: HubSource, fields: FieldLabels) -> str | None:
    """The column that holds all fields; None where each has its own."""
    chosen, there = source.label_column, ", ".join(schema.names)
    if chosen is None:
        if missing := fields.missing(schema.names):
            near = hint(missing[0], schema.names)
            raise RunFileError(f"{KEY}.label_column: the dataset has no column {missing[0]}, but {there}{near}; name the column "
                               "that holds all fields, or the columns in field_columns")
        return None
    if chosen not in schema.names:
        raise RunFileError(f"{KEY}.label_column: the dataset has no column {chosen}, but {there}{hint(chosen, schema.names)}")
    kind = schema.field(chosen).type
    if pa.types.is_struct(kind):
        keys = [field.name for field in kind]
        if missing := fields.missing(keys):
            near = hint(missing[0], keys)
            raise RunFileError(f"{KEY}.field_columns: {chosen} has no key {missing[0]}, but {', '.join(keys)}{near}")
    elif not _is_text(kind):
        raise RunFileError(f"{KEY}.label_column: {chosen} holds {_kind(schema, chosen)}, not JSON or a structure of the fields")
    return chosen


def _holds_labels(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    return _is_text(kind) or bool(pa.types.is_integer(kind))


def _is_text(kind: pa.DataType) -> bool:
    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _check_all_known(columns: Columns, names: tuple[str, ...]) -> None:
    """Raises with one line for each class of the dataset that is none of the task's, and each key that leads nowhere."""
    lines = []
    for number, name in enumerate(names):
        if isinstance(columns.class_of(number), Problem):
            lines.append(f"{KEY}.class_names: class {name} of the dataset is not in run.task.classes; "
                         f"map it to a class here{columns.classes.hint(name)}")
    known = {*names, *map(str, range(len(names)))}
    lines += [
        f"{KEY}.class_names.{written}: the dataset has no such class{hint(written, names)}"
        for written in columns.mapped if written not in known
    ]  # fmt: skip
    if lines:
        raise RunFileError("\n".join(lines))


def _schema_features(schema: pa.Schema) -> dict[str, Any]:
    """What `datasets` has written of the columns into the file; nothing where something else wrote it."""
    try:
        written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = written.get("info", {}).get("features") or {}
    except (ValueError, AttributeError, RecursionError):
        return {}
    return dict(features) if isinstance(features, dict) else {}


def _card_features(card: Mapping[str, Any]) -> dict[str, Any]:
    """The same of the dataset's card, which writes it in another way: `{name: label, dtype: {class_label: {names: ...}}}`."""
    listed = card.get("features")
    features: dict[str, Any] = {}
    for item in listed if isinstance(listed, list) else []:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            continue
        kind = item.get("dtype")
        if kind == "image" or (isinstance(kind, Mapping) and "image" in kind):
            features[item["name"]] = {"_type": "Image"}
        elif isinstance(kind, Mapping) and isinstance(kind.get("class_label"), Mapping):
            features[item["name"]] = {"_type": "ClassLabel", **kind["class_label"]}
    return features


def _type_of(feature: Any) -> str | None:
    return feature.get("_type") if isinstance(feature, Mapping) else None


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """Names of a ClassLabel by number: a list, or a mapping whose keys are the numbers."""
    names = feature.get("names") if isinstance(feature, Mapping) and _type_of(feature) == "ClassLabel" else None
    if isinstance(names, Mapping):
        try:
            names = [names[key] for key in sorted(names, key=int)]
        except (TypeError, ValueError):
            return None
    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
        return None
    return tuple(map(str, names))
