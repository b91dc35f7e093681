"""What this version does not have yet."""

from __future__ import annotations

from pocketvlm.errors import NotAvailableYet
from pocketvlm.run_file.recipe import Recipe


def not_available(recipe: Recipe) -> list[str]:
    """Keys that ask for parts which this version does not have, one line each; empty when all is there."""
    lines = []
    if recipe.task.kind != "classify":
        lines.append(f"run.task.kind: {recipe.task.kind} is not available yet; classify is")
    if recipe.task.answer != "label":
        lines.append(f"run.task.answer: {recipe.task.answer} is not available yet; label is")
    for key in ("fields", "system"):
        if getattr(recipe.task, key):
            lines.append(f"run.task.{key}: not available yet; remove it")
    return lines


def refuse_not_available(recipe: Recipe) -> None:
    """Raises NotAvailableYet with one line for each key that asks for a part which this version does not have."""
    if lines := not_available(recipe):
        raise NotAvailableYet("\n".join(lines))
