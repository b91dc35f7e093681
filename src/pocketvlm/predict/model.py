"""A released model, ready to be asked: from one image to a folder of thousands, in constant memory."""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from pocketvlm.artifacts.release import Release
from pocketvlm.environment import Environment, read_environment
from pocketvlm.errors import DataError, ToolError
from pocketvlm.llamacpp.toolchain import Toolchain, find_toolchain
from pocketvlm.phone import Pair, Reply, pair_threads
from pocketvlm.predict.answer import Prediction, Value
from pocketvlm.predict.images import ImageLike, prepare
from pocketvlm.predict.lane import Lane
from pocketvlm.predict.opened import OpenedRelease, open_release
from pocketvlm.sources.class_folders import printable
from pocketvlm.sources.record import Problem

MAX_LANES = 8
"""Servers of a small pair, each with one thread."""
AHEAD = 4
"""Images for each server that are prepared while it answers."""
PREPARERS = 4
"""Threads that decode, at most."""


class Model:
    """One type of a release on llama-server; a context manager, or closed by `close` and at the end of the program.

    Open it in a thread that outlives it: its servers end with that thread. Several threads may ask it.
    """

    def __init__(
        self, opened: OpenedRelease, type: str, toolchain: Toolchain, threads: int, *, files: tuple[Path, Path] | None = None
    ) -> None:
        """Starts the first server. `files`: another pair (text, mmproj) that is asked the same, whose confidence nobody fitted.

        Raises ToolError when the server does not start.
        """
        self.type = type
        """Of the release's types, the one that answers."""
        self._opened, self._toolchain, self._threads = opened, toolchain, threads
        self._files = files or opened.pair(type)
        self._temperature = 1.0 if files else opened.release.temperature or 1.0
        self._question = opened.question()
        self._lanes: list[Lane] = []
        self.close = weakref.finalize(self, _close, self._lanes)
        """Ends the servers; done again, it does nothing."""
        self._more_lanes(1)

    @classmethod
    def open(
        cls, name_or_folder: str | Path, *, version: str | None = None, type: str | None = None,
        environment: Environment | None = None,
    ) -> Self:  # fmt: skip
        """A release by its name in the store (pulled into the cache, every sha256 checked) or the folder of a pulled one.

        `version`: default: the latest. `type`: a GGUF type; default: the most accurate. Raises UserError for what does not
        exist, Corrupt for wrong bytes, ToolError when llama-server does not start.
        """
        environment = environment or read_environment()
        toolchain = find_toolchain(environment)
        opened = open_release(name_or_folder, environment, version=version, types=[type] if type else ())
        return cls(opened, opened.types[0], toolchain, environment.thread_count())

    @property
    def release(self) -> Release:
        """Its release.json."""
        return self._opened.release

    @property
    def llama_cpp(self) -> str:
        """Commit of the llama.cpp that answers here."""
        return self._toolchain.commit

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def predict(self, image: ImageLike) -> Prediction:
        """The answer to one image: a path, the bytes of a file, or an image of Pillow's.

        Raises DataError for an image that cannot be read, ToolError when llama.cpp fails on it.
        """
        name, png = _name(image, 1), prepare(image, self.release.device)
        if isinstance(png, Problem):
            raise DataError(f"{name}: {png.detail} ({png.reason})")
        return self.ask(name, png)

    def ask(self, name: str, png: bytes) -> Prediction:
        """The answer to what `prepare` made of an image. Raises ToolError."""
        return self._answer(name, self._lanes[0].submit(png).result())

    def predict_many(self, images: Iterable[ImageLike]) -> Iterator[Prediction]:
        """Answers in the order of the images, as they come. An image without an answer has an `error`.

        Raises ToolError when llama.cpp fails on one image after the other: then it is not the images.
        """
        lanes = self._more_lanes(self._useful_lanes(len(images) if isinstance(images, Sized) else MAX_LANES))
        waiting: deque[tuple[str, Lane, Future[bytes | Problem], Future[Reply | Problem]]] = deque()
        preparers = ThreadPoolExecutor(min(self._threads, PREPARERS), "prepare")
        failures = _Failures()
        try:
            for number, (image, lane) in enumerate(zip(images, itertools.cycle(lanes), strict=False), start=1):
                png = preparers.submit(prepare, image, self.release.device)
                waiting.append((_name(image, number), lane, png, lane.submit_prepared(png)))
                if len(waiting) > AHEAD * len(lanes):
                    yield self._next(*waiting.popleft(), failures)
            while waiting:
                yield self._next(*waiting.popleft(), failures)
        finally:
            for *_, reply in waiting:
                reply.cancel()
            preparers.shutdown(cancel_futures=True)

    def _next(
        self, name: str, lane: Lane, png: Future[bytes | Problem], future: Future[Reply | Problem], failures: _Failures
    ) -> Prediction:
        try:
            reply = future.result()
        except ToolError:
            reply = self._again(name, lane, png, failures)
        if isinstance(reply, Problem):
            return Prediction(name, error=f"{reply.detail} ({reply.reason})")
        failures.forget()
        return self._answer(name, reply)

    def _again(self, name: str, lane: Lane, png: Future[bytes | Problem], failures: _Failures) -> Reply | Problem:
        """Once more, since another image may have broken the server down; then as the first image of a new server."""
        data = png.result()
        assert isinstance(data, bytes)
        for last in (False, True):
            try:
                return lane.submit(data).result()
            except ToolError as error:
                lane.restart()
                if last:
                    failures.note(name, error)
                    return Problem("llama_cpp", str(error).partition("; its last lines")[0])
        raise AssertionError("unreachable")

    def _answer(self, name: str, reply: Reply) -> Prediction:
        release = self.release
        confidence = reply.confidence(self._temperature)
        best: Value | None = None if reply.label is None else self._question.kind.values(reply.label) or reply.label
        sure = best is not None and confidence >= release.answer_threshold
        return Prediction(
            name, best if sure else None, best, confidence, reply.prompt_ms + reply.answer_ms, reply.reason, reply.text.strip(),
        )  # fmt: skip

    def _useful_lanes(self, images: int) -> int:
        """A small pair has one thread, so each core has a server of its own; each image is asked as if it were the only one."""
        return min(MAX_LANES, max(1, images), max(1, self._threads // pair_threads(*self._files, self._threads)))

    def _more_lanes(self, count: int) -> Sequence[Lane]:
        while len(self._lanes) < count:
            pair = Pair(
                self._toolchain, *self._files, self._question, threads=self._threads,
                context_tokens=self._opened.context_tokens(),
            )  # fmt: skip
            self._lanes.append(Lane(pair))
        return self._lanes


class _Failures:
    """Counts images in a row that llama.cpp failed on, each on a server that was new."""

    MOST = 3

    def __init__(self) -> None:
        self._row = 0

    def forget(self) -> None:
        self._row = 0

    def note(self, name: str, error: ToolError) -> None:
        self._row += 1
        if self._row >= self.MOST:
            raise ToolError(f"llama.cpp fails on one image after the other, last on {name}: {error}") from error


def _close(lanes: list[Lane]) -> None:
    for lane in lanes:
        lane.close()
    lanes.clear()


def _name(image: ImageLike, number: int) -> str:
    """What a row calls the image. Names of files are bytes on Linux; those that are no UTF-8 must break no writer."""
    if isinstance(image, str | Path):
        return printable(str(image))
    name = getattr(image, "filename", "") if isinstance(image, Image.Image) else ""
    return printable(str(name)) if name else f"image {number}"
