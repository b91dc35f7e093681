"""The fields of an `extract` task in what a source has of an image: a column for each, or one column that holds all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pocketvlm.errors import RunFileError
from pocketvlm.run_file import ExtractField
from pocketvlm.run_file.values import parse, read_label
from pocketvlm.sources.record import Context, Problem, hint

KEY = "run.labeller.source"


class FieldLabels:
    """Reads labels out of cells."""

    def __init__(self, fields: Mapping[str, ExtractField], renamed: Mapping[str, str]) -> None:
        """`renamed`: field -> its column or key. Raises RunFileError for one that is no field of the task."""
        lines = [
            f"{KEY}.field_columns.{name}: is not in run.task.fields{hint(name, fields)}" for name in renamed if name not in fields
        ]
        if lines:
            raise RunFileError("\n".join(lines))
        self._fields = fields
        self._column_of = {name: renamed.get(name, name) for name in fields}

    @property
    def columns(self) -> list[str]:
        """Where the fields are, in their order."""
        return list(self._column_of.values())

    def missing(self, there: Iterable[str]) -> list[str]:
        """Columns of fields that are not `there`."""
        known = set(there)
        return [column for column in self.columns if column not in known]

    def of_cells(self, cells: Mapping[str, Any]) -> str | Problem:
        """The label of a row, of which other columns do not matter."""
        if missing := [column for column in self.columns if cells.get(column) is None]:
            return Problem("missing_field", f"{missing[0]} is missing or empty")
        try:
            return read_label(self._fields, {name: cells[column] for name, column in self._column_of.items()})
        except ValueError as error:
            return Problem("bad_value", str(error))

    def of_cell(self, column: str, cell: Any) -> str | Problem:
        """The label in the one cell that holds all fields: JSON text, or an object already."""
        if cell is None or cell == "":
            return Problem("missing_field", f"{column} is missing or empty")
        if isinstance(cell, str):
            try:
                cell = parse(cell)
            except ValueError as error:
                return Problem("bad_value", f"{column} is no JSON: {error}")
        if not isinstance(cell, Mapping):
            return Problem("bad_value", f"{column} holds a {type(cell).__name__}, not an object with the fields")
        return self.of_cells(cell)


def field_labels(renamed: Mapping[str, str], context: Context) -> FieldLabels | None:
    """For a source that labels the fields of a task; None where a teacher does, or there are classes. Raises as FieldLabels."""
    return FieldLabels(context.fields, renamed) if context.labelled and context.fields else None
