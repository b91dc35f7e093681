"""jobs/elements.yaml from its source to a released GGUF pair: COCO's layout, a teacher, and the tiny student."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from fake_teacher import KEY, FakeTeacher
from runs import elements
from serve_coco import CocoServer

from pocketvlm.artifacts.dataset import SPLITS

from ..conftest import Place, place

pytestmark = [pytest.mark.chain, pytest.mark.llamacpp]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, built: None) -> Iterator[tuple[Place, FakeTeacher, CocoServer]]:
    """The run at its end, and the servers that it asked."""
    with CocoServer(1000) as coco, FakeTeacher(latency_s=0.02) as teacher:
        there = place(tmp_path_factory.mktemp("elements"), elements(coco.settings(), teacher.url), name="elements")
        run = there.start("run", str(there.run_file), OPENAI_API_KEY=KEY, POCKETVLM_CACHE=there.folder / "cache")
        log = run.communicate(timeout=500)[1]
        assert run.returncode == 0, log[-4000:]
        (there.folder / "log.txt").write_text(log)
        yield there, teacher, coco


def test_photographs_end_as_a_released_pair(labelled: tuple[Place, FakeTeacher, CocoServer]) -> None:
    there, _, _ = labelled
    latest = json.loads(there.store.read("releases/elements/latest.json"))
    root = f"releases/elements/{latest['version']}/"
    names = {stored.key.removeprefix(root) for stored in there.store.list(root)}
    assert {"prompt.txt", "grammar.gbnf", "report.html", "release.json"} < names
    assert sum(name.endswith(".gguf") for name in names) == 2
    assert json.loads(there.store.read(f"{root}release.json"))["classes"] == ["water", "land", "fire", "wood", "metal"]
    prompt = there.store.read(f"{root}prompt.txt").decode()
    assert "confidence" not in prompt and "reason" not in prompt.lower()


def test_every_class_has_its_images_and_each_image_its_photographer_and_licence(
    labelled: tuple[Place, FakeTeacher, CocoServer],
) -> None:
    there, teacher, coco = labelled
    artifact = there.artifact("labeller")
    folder = artifact.fetch(there.folder / "dataset")
    rows = [row for split in SPLITS for path in folder.glob(f"{split}-*.parquet") for row in pq.read_table(path).to_pylist()]
    assert set(Counter(row["label"] for row in rows).values()) == {8}
    assert {row["licence"].split(" (")[0] for row in rows} <= {
        "Attribution License", "Attribution-ShareAlike License", "No known copyright restrictions",
        "United States Government Work",
    }  # fmt: skip
    assert all(row["url"].startswith(coco.url) and row["author"] and row["teacher_reason"] for row in rows)
    costs = artifact.measurements()["costs"]
    assert costs["usd"] == pytest.approx(teacher.ledger.usd, rel=0.01)
    assert costs["teachers"][0]["calls"] <= teacher.ledger.billed  # of images that were looked at; some are asked ahead


def test_the_report_says_what_the_labels_cost_and_why_images_were_left_out(
    labelled: tuple[Place, FakeTeacher, CocoServer],
) -> None:
    there, _, _ = labelled
    (page,) = (path.read_text() for path in Path(there.folder).rglob("reports/*.html"))
    for text in ("The teacher", "for each label that was kept", "class_full", "none_of_these"):
        assert text in page, text


def test_a_second_run_asks_nobody(labelled: tuple[Place, FakeTeacher, CocoServer]) -> None:
    there, teacher, coco = labelled
    before = teacher.ledger.billed, sum(coco.asked.values())
    again = there.pocketvlm("run", str(there.run_file))
    assert again.returncode == 0, again.stderr[-2000:]
    assert "0 stages made, 5 already done" in again.stderr
    assert (teacher.ledger.billed, sum(coco.asked.values())) == before
