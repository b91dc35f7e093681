"""Whether text model and mmproj are of one training. The files of a pair alone do not say: something to compare is needed.

With the checkpoint that the pair was made from, each file is compared with it, and the answer is certain. With the base
alone, one thing shows: an mmproj that is the base's. That is right where neither vision nor connector was trained, so it
is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pocketvlm.doctor import tensors
from pocketvlm.doctor.checkpoint_file import Checkpoint
from pocketvlm.doctor.finding import Finding
from pocketvlm.llamacpp.gguf_file import Gguf

BLIND = "the text model was trained on what another vision tower sees; what was learnt of images is lost"
NEEDS = "give --checkpoint, the folder that they were made from (or --base, the model before training)"


@dataclass(frozen=True)
class Base:
    """The model before training: files of a pair, a checkpoint, or both."""

    files: list[Gguf]
    checkpoint: Checkpoint | None

    def of(self, file: Gguf) -> dict[str, tensors.Rows]:
        """The base's tensors under this file's names."""
        for other in self.files:
            if other.is_mmproj == file.is_mmproj:
                return tensors.of_gguf(other)
        return tensors.of_checkpoint(self.checkpoint, file) if self.checkpoint else {}


def check_origin(
    text: Gguf | None, mmproj: Gguf | None, checkpoint: Checkpoint | None, base: Base | None, unseen: list[str]
) -> Iterator[Finding]:
    """Compares the files of a pair; what cannot be told is added to `unseen`."""
    seen = tensors.compare(mmproj, base.of(mmproj)) if base and mmproj else None
    is_base = seen is not None and seen.told and not seen.differ
    if checkpoint is not None:
        for file in (mmproj, text):
            if file is not None:
                yield from _beside_checkpoint(file, checkpoint, unseen, is_base=is_base and file is mmproj)
    elif is_base and mmproj is not None and base is not None:
        yield _only_base(text, mmproj, base)
    elif base is None and text is not None and mmproj is not None:
        unseen.append(f"whether {mmproj.path.name} is of the same training as {text.path.name}, or the base's; {NEEDS}")
    if seen is not None and not seen.told and mmproj is not None:
        unseen.append(f"whether {mmproj.path.name} is the base's: its types cannot be compared with that of --base")


def _beside_checkpoint(file: Gguf, checkpoint: Checkpoint, unseen: list[str], *, is_base: bool) -> Iterator[Finding]:
    match = tensors.compare(file, tensors.of_checkpoint(checkpoint, file))
    part = "vision and connector" if file.is_mmproj else "text model"
    if not match.told:
        unseen.append(f"whether {file.path.name} was made from {checkpoint.path.name}: its types or names cannot be compared; "
                      "compare the bf16 or q8_0 file")  # fmt: skip
    elif match.differ:
        count = f"{len(match.differ)} of {match.same + len(match.differ)} tensors are not those of the checkpoint"
        if is_base:
            count += "; all are those of the base, so that its mmproj was shipped beside a model whose vision was trained"
        yield Finding("base-mmproj" if is_base else "other-checkpoint", "fault", f"{file.path.name}: {match.differ[0]}", count,
                      BLIND if file.is_mmproj else "the phone answers as another model than the one that was trained",
                      f"convert the {part} again from {checkpoint.path.name}")  # fmt: skip
    elif match.unknown > match.same:
        unseen.append(f"whether all of {file.path.name} was made from {checkpoint.path.name}: {match.same} tensors are the same, "
                      f"and {match.unknown} cannot be compared; compare the bf16 or q8_0 file")  # fmt: skip


def _only_base(text: Gguf | None, mmproj: Gguf, base: Base) -> Finding:
    match = tensors.compare(text, base.of(text)) if text else None
    if match is not None and match.told and not match.differ:
        return Finding("untrained", "warning", f"{mmproj.path.name}, {text.path.name if text else ''}", "both are the base's, as "
                       "far as their types can be compared", "the phone answers as the base does; what was trained is not in it",
                       "convert the merged checkpoint, not the base")  # fmt: skip
    return Finding("base-mmproj", "warning", f"{mmproj.path.name}", "holds the very tensors of the base",
                   f"if vision or connector was trained: {BLIND}; if not, it is right",
                   "give the doctor --checkpoint to be sure, or convert the mmproj again from the merged checkpoint")  # fmt: skip
