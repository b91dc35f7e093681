"""The page: a picture on the left, the answers on the right. Gradio, without anything from outside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pocketvlm.demo import cards
from pocketvlm.demo.columns import Column
from pocketvlm.llamacpp.build import read_pin
from pocketvlm.predict.answer import Prediction
from pocketvlm.predict.images import prepare
from pocketvlm.predict.opened import OpenedRelease
from pocketvlm.sources.record import Problem

Shown = tuple[str, str, list[Prediction | None]]
"""HTML of the canvas, HTML of the cards, and what the models said."""


def build_page(opened: OpenedRelease, columns: Sequence[Column]) -> Any:
    """The Gradio blocks."""
    import gradio as gr

    release = opened.release
    with gr.Blocks(title=f"{release.name} · PocketVLM", analytics_enabled=False) as blocks:
        gr.HTML(f"<h1>{cards.text(release.name)}</h1><p>{cards.text(_about(opened))}</p>", elem_id="pv-head")
        said = gr.State([])
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                photo = gr.Image(
                    label="Picture", sources=["upload", "webcam", "clipboard"], type="filepath", image_mode=None, height=300,
                    buttons=[], elem_id="pv-photo", webcam_options=gr.WebcamOptions(mirror=False, constraints=BACK_CAMERA),
                )  # fmt: skip
                # The path of what was uploaded, unopened: the hardened decoder of the sources reads it, not Gradio.
                photo.preprocess = _path
                canvas = gr.HTML(elem_id="pv-canvas")
            with gr.Column(scale=3, min_width=280):
                results = gr.HTML(cards.WAITING, elem_id="pv-results")
                threshold = gr.Slider(
                    0, 1, release.answer_threshold, step=0.01, label="Answer threshold", elem_id="pv-threshold",
                    info=f"Below this confidence the app says that it does not know. Released: {release.answer_threshold:g}.",
                )  # fmt: skip
        if examples := _examples(opened):
            gr.Examples(examples, photo, label="Held-out pictures of the release", examples_per_page=12, elem_id="pv-examples")

        def ask(path: str | None, least: float) -> Iterator[Shown]:
            yield from _ask(opened, columns, path, least)

        def again(rows: list[Prediction | None], least: float) -> str:
            return cards.cards(columns, rows, least) if rows else cards.WAITING

        photo.change(ask, [photo, threshold], [canvas, results, said], api_visibility="private", show_progress="hidden")
        threshold.change(again, [said, threshold], results, api_visibility="private", show_progress="hidden")
    return blocks


BACK_CAMERA = {"video": {"facingMode": {"ideal": "environment"}}}


def examples_folder(opened: OpenedRelease) -> Path:
    """Where the example pictures lie: nothing else of this machine may be asked for by the page."""
    return opened.folder / "golden"


def _ask(opened: OpenedRelease, columns: Sequence[Column], path: str | None, threshold: float) -> Iterator[Shown]:
    """One model after the other, so that none lengthens another's time."""
    if path is None:
        yield "", cards.WAITING, []
        return
    png = prepare(path, opened.release.device)
    if isinstance(png, Problem):
        yield "", cards.problem(f"This picture cannot be used: {png.detail}."), []
        return
    canvas = cards.seen(png, opened.release.device)
    rows: list[Prediction | None] = [None] * len(columns)
    yield canvas, cards.cards(columns, rows, threshold), rows
    for place, column in enumerate(columns):
        if column.model is not None:
            rows[place] = column.model.ask("picture", png)
            yield canvas, cards.cards(columns, rows, threshold), rows


def _path(payload: Any) -> str | None:
    """Of an uploaded file. Gradio has made sure by now that it is one."""
    return None if payload is None else str(payload.path)


def _about(opened: OpenedRelease) -> str:
    release = opened.release
    return (f"version {release.version} · {release.family}, trained from {release.base} · "
            f"asked here on llama.cpp {read_pin().commit[:9]}, nothing leaves this machine")  # fmt: skip


def _examples(opened: OpenedRelease) -> list[list[str]]:
    names = [Path(file.name).name for file in opened.release.files if file.role == "golden" and file.name.endswith(".png")]
    there = (examples_folder(opened) / name for name in names if not name.startswith("canvas"))
    return [[str(path)] for path in sorted(there) if path.is_file()][:12]
