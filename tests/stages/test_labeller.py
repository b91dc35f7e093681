"""The labeller from source to published dataset, through the skeleton that runs it."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketvlm.artifacts.artifact import Artifact
from pocketvlm.artifacts.dataset import SPLITS, Example, Quarantined, read_quarantine, read_split
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.environment import Environment
from pocketvlm.errors import DataError
from pocketvlm.progress import Progress
from pocketvlm.run_file import RunFile, check_run_file
from pocketvlm.stages import labeller
from pocketvlm.stages.stage import run_stage
from pocketvlm.student.pixels import letterbox

CLASSES = ["fire", "water"]
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def photo(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    noise_HWC = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise_HWC).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


class Desk:
    """A folder of images, a store, and the labeller between them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = io.StringIO()

    def put(self, name: str, data: bytes) -> None:
        path = self.root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def put_photos(self, count: int = 10) -> None:
        for index in range(count):
            for place, name in enumerate(CLASSES):
                self.put(f"{name}/{index:02d}.png", encoded(photo(2 * index + place)))

    def run_file(self, classes: list[str] = CLASSES, canvas_px: int | None = 64, **settings: Any) -> RunFile:
        settings = {"source": {"kind": "folder", "path": "images"}, **settings}
        recipe = {
            "name": "test",
            "task": {"classes": dict.fromkeys(classes, ""), "question": "Which?"},
            "device": {"canvas_px": canvas_px},
            "student": {"model": "tiny"},
            "labeller": settings,
            "trainer": {"phases": [{"method": "full"}]},
        }
        return check_run_file({"run": recipe}, self.root / "run.yaml")

    def label(self, run_file: RunFile | None = None, *, store: str = "store", threads: int = 2) -> Artifact:
        environment = Environment(POCKETVLM_SCRATCH=self.root / "scratch", POCKETVLM_THREADS=threads)
        artifact, _ = run_stage(
            "labeller",
            run_file or self.run_file(),
            FolderStore(self.root / store),
            environment,
            Progress("labeller", self.log),
        )
        return artifact

    def open(self, artifact: Artifact) -> Path:
        return artifact.fetch(self.root / "fetched" / artifact.id)

    def rows(self, artifact: Artifact) -> dict[str, tuple[str, Example]]:
        """Split and example by source id."""
        folder = self.open(artifact)
        return {row.source_id: (split, row) for split in SPLITS for row in read_split(folder, split)}

    def quarantine(self, artifact: Artifact) -> dict[str, str]:
        return {item.source_id: item.reason for item in read_quarantine(self.open(artifact))}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_images_lie_on_the_devices_canvas_with_label_answer_and_question(desk: Desk) -> None:
    desk.put_photos()
    rows = desk.rows(desk.label())
    assert len(rows) == 20
    _, example = rows["fire/00.png"]
    assert (example.label, example.answer, example.question) == ("fire", "fire", "Which?")
    image = Image.open(io.BytesIO(example.image_png))
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert image.tobytes() == letterbox(photo(0), 64).tobytes()


def test_without_a_canvas_images_stay_as_they_are_and_hopelessly_thin_ones_are_refused(desk: Desk) -> None:
    desk.put_photos()
    desk.put("fire/thin.png", encoded(Image.new("RGB", (600, 1))))
    artifact = desk.label(desk.run_file(canvas_px=None))
    _, example = desk.rows(artifact)["fire/00.png"]
    assert Image.open(io.BytesIO(example.image_png)).tobytes() == photo(0).tobytes()
    assert desk.quarantine(artifact) == {"fire/thin.png": "too_thin"}


def test_hostile_files_are_quarantined_and_odd_ones_are_used(desk: Desk) -> None:
    desk.put_photos()
    refused = {
        "truncated.jpg": (encoded(photo(100, 640, 480), "JPEG")[:-2000], "truncated"),
        "empty.png": (b"", "empty_file"),
        "gif.jpg": (encoded(photo(101), "GIF"), "unsupported_format"),
        "text.png": (b"hello", "unsupported_format"),
        "bomb.png": (encoded(Image.new("1", (13_000, 13_000))), "too_many_pixels"),
        "animated.webp": (encoded(photo(102), "WEBP", save_all=True, append_images=[photo(103)]), "animated"),
        "animated.png": (encoded(photo(104), "PNG", save_all=True, append_images=[photo(105)]), "animated"),
    }
    used = {
        "cmyk.jpg": encoded(photo(110).convert("CMYK"), "JPEG"),
        "sixteen.png": encoded(Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16)),
        "palette.png": encoded(photo(111).convert("P"), transparency=3),
        "dot.png": encoded(Image.new("RGB", (1, 1), (250, 20, 20))),
        "strip.png": encoded(photo(112, 4000, 30)),
        "grey-alpha.png": encoded(photo(113).convert("LA")),
        "one-bit.png": encoded(photo(114).convert("1")),
        "seventeen-megapixels.png": encoded(Image.new("L", (5000, 3400), 90)),
    }
    for name, data in [*((name, data) for name, (data, _) in refused.items()), *used.items()]:
        desk.put(f"water/{name}", data)
    artifact = desk.label()
    assert desk.quarantine(artifact) == {f"water/{name}": reason for name, (_, reason) in refused.items()}
    assert {f"water/{name}" for name in used} <= desk.rows(artifact).keys()
    assert artifact.facts["quarantine"] == dict(Counter(reason for _, reason in refused.values()))
    assert artifact.facts["images_total"] == artifact.facts["images_used"] + len(refused) == 35
    assert "quarantined 7 of 35" in desk.log.getvalue()


def test_facts_count_splits_and_classes(desk: Desk) -> None:
    desk.put_photos()
    artifact = desk.label()
    rows = desk.rows(artifact)
    counted = {split: dict.fromkeys(CLASSES, 0) for split in SPLITS}
    for split, example in rows.values():
        counted[split][example.label] += 1
    assert artifact.facts["counts"] == counted
    assert counted["train"] == {"fire": 7, "water": 7}
    assert artifact.facts["classes"] == CLASSES
    assert artifact.measurements()["images_per_second"] > 0


def test_split_keeps_copies_of_one_image_on_one_side(desk: Desk) -> None:
    desk.put_photos(20)
    for index in range(0, 20, 2):
        large = photo(2 * index)
        desk.put(f"fire/{index:02d}-small.png", encoded(large.resize((72, 48), Image.Resampling.LANCZOS)))
        desk.put(f"fire/{index:02d}-again.jpg", encoded(large, "JPEG", quality=60))
    artifact = desk.label()
    rows = desk.rows(artifact)
    for index in range(0, 20, 2):
        sides = {rows[f"fire/{index:02d}{end}"][0] for end in (".png", "-small.png", "-again.jpg")}
        assert len(sides) == 1
    assert (artifact.facts["near_copy_groups"], artifact.facts["near_copy_images"]) == (10, 30)


def test_equal_files_are_used_once(desk: Desk) -> None:
    desk.put_photos()
    desk.put("fire/copy.png", encoded(photo(0)))
    artifact = desk.label()
    assert read_quarantine(desk.open(artifact)) == [Quarantined("fire/copy.png", "duplicate", "same bytes as fire/00.png")]


@pytest.mark.parametrize("near_copies", [True, False])
def test_equal_files_with_contradicting_labels_are_all_quarantined(desk: Desk, near_copies: bool) -> None:
    desk.put_photos()
    desk.put("water/fire.png", encoded(photo(0)))
    artifact = desk.label(desk.run_file(near_copies=near_copies))
    assert desk.quarantine(artifact) == dict.fromkeys(("fire/00.png", "water/fire.png"), "contradicting_labels")


def test_near_copies_with_contradicting_labels_are_all_quarantined(desk: Desk) -> None:
    desk.put_photos()
    desk.put("water/fire.jpg", encoded(photo(0), "JPEG", quality=80))
    run_file = desk.run_file()
    artifact = desk.label(run_file)
    assert desk.quarantine(artifact) == dict.fromkeys(("fire/00.png", "water/fire.jpg"), "contradicting_labels")
    assert desk.quarantine(desk.label(desk.run_file(near_copies=False))) == {}


def test_dataset_is_the_same_bytes_with_any_number_of_threads(desk: Desk) -> None:
    desk.put_photos()
    desk.put("fire/broken.png", b"x")
    one = desk.label(store="one", threads=1)
    four = desk.label(store="four", threads=4)
    assert one.manifest.to_bytes() == four.manifest.to_bytes()


def test_id_follows_content_and_settings_but_not_the_place(desk: Desk, tmp_path: Path) -> None:
    desk.put_photos()
    run_file = desk.run_file()
    before = labeller.settings(run_file.run, tmp_path)
    json.dumps(before)
    (tmp_path / "images").rename(tmp_path / "moved")
    moved = desk.run_file(source={"kind": "folder", "path": "moved"})
    assert labeller.settings(moved.run, tmp_path) == before
    (tmp_path / "moved" / "fire" / "00.png").write_bytes(encoded(photo(999)))
    assert labeller.settings(moved.run, tmp_path) != before
    (tmp_path / "moved").rename(tmp_path / "images")
    assert labeller.settings(desk.run_file(canvas_px=32).run, tmp_path)["canvas_px"] == 32


def test_reason_and_confidence_of_records_are_kept_and_unsure_ones_quarantined(desk: Desk) -> None:
    desk.put_photos()
    rows = [
        {"image_id": f"{name}-{index}", "image_path": f"{name}/{index:02d}.png", "element": name.upper(),
         "reason": "looks so", "confidence": 0.5 + index / 20}
        for index in range(10)
        for name in CLASSES
    ]  # fmt: skip
    (desk.root / "images" / "labels.json").write_text(json.dumps(rows))
    source = {"kind": "records", "path": "images/labels.json", "label_column": "element"}
    artifact = desk.label(desk.run_file(source=source, min_confidence=0.6))
    assert desk.quarantine(artifact) == {f"{name}-{i}": "low_confidence" for i in range(2) for name in CLASSES}
    import pyarrow.parquet as pq

    table = pq.read_table(desk.open(artifact) / "train-00000-of-00001.parquet")
    assert set(table["teacher_reason"].to_pylist()) == {"looks so"}
    assert min(table["teacher_confidence"].to_pylist()) >= 0.6
    assert set(table["teacher_model"].to_pylist()) == {None}


def test_source_without_a_usable_image_is_wrong_data(desk: Desk) -> None:
    for name in CLASSES:
        desk.put(f"{name}/a.png", b"")
    with pytest.raises(DataError, match=r"none of the source's 2 images can be used: 2 empty_file; first: fire/a.png"):
        desk.label()


def test_empty_source_is_wrong_data(desk: Desk) -> None:
    for name in CLASSES:
        (desk.root / "images" / name).mkdir(parents=True)
    with pytest.raises(DataError, match="none of the source's 0 images can be used: it is empty"):
        desk.label()


def test_class_that_cannot_be_split_is_named_with_what_was_quarantined(desk: Desk) -> None:
    desk.put_photos()
    desk.put("earth/a.png", encoded(photo(500)))
    desk.put("earth/b.png", b"x")
    with pytest.raises(DataError, match=r"class earth: 1 usable images.*\n.*in quarantine: .*unsupported_format"):
        desk.label(desk.run_file([*CLASSES, "earth"]))


def test_digits_are_split_as_stated(desk: Desk) -> None:
    artifact = desk.label(desk.run_file(DIGITS, canvas_px=32, source={"kind": "digits"}))
    sizes = {split: sum(artifact.facts["counts"][split].values()) for split in SPLITS}
    assert sizes == {"train": 1258, "validation": 180, "test": 359}
    assert artifact.facts["images_total"] == artifact.facts["images_used"] == 1797
    assert artifact.facts["near_copy_groups"] == 0
    assert artifact.facts["quarantine"] == {}
    order = [example.label for example in read_split(desk.open(artifact), "train")]
    assert len(set(order[:100])) == 10, "classes are mixed in the file, not one after the other"
