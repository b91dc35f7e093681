"""`pocketvlm predict`: images in, a row each out."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

from pocketvlm.environment import Environment
from pocketvlm.errors import DataError, UserError
from pocketvlm.predict.answer import Prediction
from pocketvlm.predict.images import MAX_PIXELS, find_images
from pocketvlm.predict.model import Model
from pocketvlm.predict.rows import Rows, open_rows
from pocketvlm.progress import Progress, duration
from pocketvlm.sources.class_folders import printable
from pocketvlm.sources.images import strict_pillow

LISTED = 1000
"""Images without an answer that are named at the end; all of them are in the rows of jsonl and csv."""


def predict(
    name_or_folder: str, images: Sequence[Path], environment: Environment, *, version: str | None = None, type: str | None = None,
    format: str | None = None, output: Path | None = None,
) -> int:  # fmt: skip
    """Asks a release about images and writes the rows; returns the exit code: 3 when some image has no answer, else 0.

    `format`: one of rows.FORMATS; default: by the name of `output`, else a table on a terminal and JSON lines elsewhere.
    Raises what `Model.open` and `find_images` raise, and UserError for an `output` that cannot be written; BrokenPipeError when
    nobody reads the rows any more.
    """
    if output is None and sys.stdout is None:
        raise UserError("standard output is closed; name a file with --output")
    found = find_images(images)
    form = format or _format(output)
    with Model.open(name_or_folder, version=version, type=type, environment=environment) as model, strict_pillow(MAX_PIXELS):
        _note(model)
        try:
            with _opened(output) as stream:
                return _ask(model, found, open_rows(form, stream, max(len(printable(str(path))) for path in found)), stream)
        except BrokenPipeError:
            raise
        except OSError as error:  # images and servers have errors of their own
            raise UserError(f"{output or 'standard output'}: cannot be written ({error.strerror}); it has the rows before, "
                            "make room or name another --output") from error


def _ask(model: Model, images: list[Path], rows: Rows, stream: TextIO) -> int:
    progress = None if stream.isatty() else Progress()
    failed: list[Prediction] = []
    unsure, clock = 0, time.monotonic()
    for done, row in enumerate(model.predict_many(images), start=1):
        rows.write(row)
        unsure += row.unsure
        if row.error is not None:
            failed.append(row)
        if progress is not None:
            progress.step(done, len(images), "images")
    _say(model, len(images), unsure, failed, time.monotonic() - clock)
    return DataError.exit_code if failed else 0


def _say(model: Model, images: int, unsure: int, failed: list[Prediction], seconds: float) -> None:
    release = model.release
    threshold = f", {unsure} of them below the threshold of {release.answer_threshold:g}" if unsure else ""
    lines = [f"{release.name} {release.version} ({model.type}): {images - len(failed)} of {images} images answered{threshold}; "
             f"{duration(seconds)}, {images / seconds:.1f}/s"]  # fmt: skip
    if failed:
        lines.append(f"{len(failed)} without an answer:")
        lines += [f"  {row.image}: {row.error}" for row in failed[:LISTED]]
    if len(failed) > LISTED:
        lines.append(f"  and {len(failed) - LISTED} more")
    print("\n".join(lines), file=sys.stderr)


def _note(model: Model) -> None:
    if model.release.llama_cpp != model.llama_cpp:
        print(f"note: {model.release.name} {model.release.version} was measured on llama.cpp {model.release.llama_cpp[:9]}; "
              f"here it is {model.llama_cpp[:9]}, and answers may differ", file=sys.stderr)  # fmt: skip


def _format(output: Path | None) -> str:
    if output is None:
        return "table" if sys.stdout.isatty() else "jsonl"
    return {".csv": "csv", ".txt": "table"}.get(output.suffix.lower(), "jsonl")


def _opened(output: Path | None) -> nullcontext[TextIO] | TextIO:
    if output is None:
        return nullcontext(sys.stdout)
    try:
        return output.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}); name another file") from error
