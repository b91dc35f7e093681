"""What stands side by side on the page: the types of a release, and the base that nobody has trained for the task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pocketvlm.errors import PocketVLMError
from pocketvlm.llamacpp.toolchain import Toolchain
from pocketvlm.predict.model import Model
from pocketvlm.predict.opened import OpenedRelease

BASE = "base"
NARROW = "\N{NARROW NO-BREAK SPACE}"
"""Between a number and its unit."""


@dataclass(frozen=True)
class Column:
    """One model of the page, or why it is not there."""

    name: str
    note: str
    model: Model | None = None
    absent: str = ""


@contextmanager
def open_columns(
    opened: OpenedRelease, toolchain: Toolchain, threads: int, make_base: Callable[[], tuple[Path, Path]] | None
) -> Iterator[list[Column]]:
    """A server for each; they end with the block. `make_base` gives the base's pair; None: no column for it.

    What keeps the base away is told in its column. Raises ToolError when a server does not start.
    """
    with ExitStack() as stack:
        columns = []
        for name in opened.types:
            model = stack.enter_context(Model(opened, name, toolchain, threads))
            measured = f"{100 * opened.release.types[name].accuracy:.1f}{NARROW}% right when measured"
            columns.append(Column(name, f"{measured} · {_size(opened.pair(name))}", _warm(model)))
        if make_base is not None:
            columns.append(_base(opened, toolchain, threads, make_base, stack))
        yield columns


def _base(
    opened: OpenedRelease, toolchain: Toolchain, threads: int, make_base: Callable[[], tuple[Path, Path]], stack: ExitStack
) -> Column:
    note = f"{opened.release.base}, not trained for this"
    try:
        files = make_base()
        model = stack.enter_context(Model(opened, opened.types[0], toolchain, threads, files=files))
    except PocketVLMError as error:
        return Column(BASE, note, absent=str(error))
    return Column(BASE, f"{note} · {_size(files)}", _warm(model))


def _warm(model: Model) -> Model:
    """Asked once already: the first answer waits for the file to be read, and would be shown as slow."""
    side_px = model.release.device.get("canvas_px") or 64
    model.predict(Image.new("RGB", (side_px, side_px), (128, 128, 128)))
    return model


def _size(files: tuple[Path, Path]) -> str:
    size = sum(path.stat().st_size for path in files)
    return f"{size / 1e6:.1f}{NARROW}MB" if size < 100e6 else f"{size / 1e6:.0f}{NARROW}MB"
