"""Which linear layers a LoRA phase puts adapters on. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pocketvlm.run_file import Phase
from pocketvlm.student.families.family import HEAD, Family


def lora_targets(family: Family, layers: Sequence[str], phase: Phase, *, tied_head: bool) -> tuple[list[str], list[str]]:
    """Which of a student's linear layers (paths) a LoRA phase puts adapters on; and what is wrong with its `targets`.

    Without `targets` for a part: all of its layers but the output head, as the QLoRA paper found best. A target is the
    end of a path: `q_proj`, `mlp.fc1`. Problems are a line each, beginning with the key below the phase.
    """
    found: dict[str, None] = {}
    problems: list[str] = []
    for part in phase.train:
        own = [path for path in layers if family.part_of(f"{path}.weight") == part]
        if part not in phase.targets:
            found |= dict.fromkeys(path for path in own if path != HEAD and not _ends(path, phase.full))
        for target in phase.targets.get(part, []):
            named = [path for path in own if _ends(path, [target])]
            if twice := next((path for path in named if _ends(path, phase.full)), None):
                problems.append(f"targets.{part}: {twice} learns whole, since full names it; remove it from one of the two")
            if not named:
                problems.append(f"targets.{part}: the {part} part has no linear layer {target!r}; it has {_last_names(own)}")
            elif tied_head and HEAD in named:
                problems.append(f"targets.{part}: {HEAD} shares its weights with the embeddings of this student, so an "
                                "adapter cannot be merged; remove it")  # fmt: skip
            found |= dict.fromkeys(named)
    return list(found), problems


def full_modules(family: Family, modules: Iterable[str], phase: Phase) -> tuple[list[str], list[str]]:
    """Which of a student's modules with own weights (paths) a LoRA phase trains whole; and what is wrong with its `full`.

    A name is the end of a path, as a target is. A problem begins with the key below the phase.
    """
    own = [path for path in modules if family.part_of(f"{path}.weight") in phase.train]
    problems = [
        f"full: {' and '.join(phase.train)} of this student has no module {name!r} with weights; it has {_last_names(own)}"
        for name in phase.full if not any(_ends(path, [name]) for path in own)
    ]  # fmt: skip
    return [path for path in own if _ends(path, phase.full)], problems


def _ends(path: str, names: Iterable[str]) -> bool:
    return any(f".{path}".endswith(f".{name}") for name in names)


def _last_names(paths: Iterable[str]) -> str:
    return ", ".join(sorted({path.rpartition(".")[2] for path in paths}))
