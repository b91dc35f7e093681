"""Variants of the question as samples: exact ids, the image's tiles shared, and nothing of the teacher."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pocketvlm.artifacts.dataset import Row, write_split
from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.environment import Environment
from pocketvlm.progress import Progress
from pocketvlm.run_file import Task, check_run_file
from pocketvlm.stages.stage import run_stage
from pocketvlm.stages.training.batches import Order
from pocketvlm.stages.training.features import Features, compute
from pocketvlm.stages.training.learner import Learner
from pocketvlm.stages.training.samples import Samples, read_samples
from pocketvlm.stages.training.spool import Spool
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import FAMILIES, MEDIA, read_geometry
from pocketvlm.student.families.idefics3 import END, TileEye
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.prompt import IGNORE, PromptEncoder
from pocketvlm.student.tiny import TILE_PX, build_tiny
from pocketvlm.student.variants import variants

CPU = torch.device("cpu")
FAMILY = FAMILIES["SmolVLMForConditionalGeneration"]
TASK = Task.model_validate({
    "classes": [{"leaf": "a green leaf"}, {"stone": "a grey stone"}], "question": "Which?", "questions_per_image": 2,
    "questions": [
        {"ask": "Is it one of {classes}?", "answer": "{label}"},
        {"ask": "What is to be seen?\nAnswer: ", "answer": "{description}, so: {label}"},
        {"ask": "And now?", "answer": "{label}"},
    ],
})  # fmt: skip
CANARY = "quokka"
IMAGES = 6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("variants") / "tiny", seed=0, longest_edge_px=2 * TILE_PX)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Any:
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def encoder(tiny: Path, tokenizer: Any) -> PromptEncoder:
    return PromptEncoder(tokenizer, read_geometry(tiny), TASK)


def row(number: int, split: str) -> Row:
    """With a canary in everything that is not the question, the answer or the label."""
    label = list(TASK.classes)[number % 2]
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    return Row(
        label=label, answer=label, question=TASK.question, sha256=sha256, phash="0" * 16,
        variants=variants(TASK, sha256, label) if split == "train" else (), source=CANARY, source_id=f"{CANARY}/{number}",
        url=f"https://{CANARY}", author=CANARY, licence=CANARY, teacher_model=CANARY, teacher_reason=f"A {CANARY} sits there.",
        teacher_confidence=0.8127, teacher_votes=7777, teacher_request_id=CANARY, teacher_cost=0.0815,
    )  # fmt: skip


def png(number: int) -> bytes:
    """A square or a wide image: another number of tiles."""
    noise_HWC = np.random.default_rng(number).integers(0, 256, (4, 4 + 4 * (number % 2), 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise_HWC).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    for split in ("train", "validation"):
        pngs = [png(number) for number in range(IMAGES)]
        write_split(folder, split, [row(n, split) for n in range(IMAGES)], [1] * IMAGES, iter(pngs), list(TASK.classes))
    return folder


def read(dataset: Path, split: str, encoder: PromptEncoder, scratch: Path) -> Samples:
    eye = TileEye(TILE_PX, 2 * TILE_PX)
    return read_samples(dataset, split, encoder, eye, spool=Spool(scratch / split), threads=2,
                        check=lambda: None)  # fmt: skip


@pytest.fixture
def train(dataset: Path, encoder: PromptEncoder, tmp_path: Path) -> Samples:
    return read(dataset, "train", encoder, tmp_path)


@pytest.fixture
def validation(dataset: Path, encoder: PromptEncoder, tmp_path: Path) -> Samples:
    return read(dataset, "validation", encoder, tmp_path)


def text_of(samples: Samples, sample: int, tokenizer: Any) -> str:
    """Everything that the student reads of a sample, its image cut out."""
    text: str = tokenizer.decode(samples.ids_MS[sample, : samples.lengths[sample]].tolist())
    start, end = text.index("<fake_token_around_image>"), text.rindex("<fake_token_around_image>")
    return text[:start] + MEDIA + text[end + len("<fake_token_around_image>") :]


def expected_pairs(number: int) -> list[tuple[str, str]]:
    one = row(number, "train")
    return [(one.question, one.answer), *one.variants]


def test_each_image_is_trained_with_the_shipped_pair_first_and_then_its_variants(train: Samples, tokenizer: Any) -> None:
    assert len(train) == 3 * IMAGES and train.images == [image for image in range(IMAGES) for _ in range(3)]
    for sample, image in enumerate(train.images):
        question, answer = expected_pairs(image)[sample % 3]
        expected = f"<|im_start|>User:{MEDIA}{question}{END}\nAssistant: {answer}{END}"
        assert text_of(train, sample, tokenizer) == expected


def test_the_ids_of_every_variant_are_those_of_its_text_before_and_after_the_image(train: Samples, tokenizer: Any) -> None:
    for sample, image in enumerate(train.images):
        question, answer = expected_pairs(image)[sample % 3]
        before = tokenizer.encode("<|im_start|>User:", add_special_tokens=False)
        after = tokenizer.encode(f"{question}{END}\nAssistant:", add_special_tokens=False)
        prompt = train.prompt(sample)
        assert prompt[: len(before)] == before and prompt[-len(after) :] == after
        middle = prompt[len(before) : -len(after)]
        assert middle == train.prompt(3 * image)[len(before) :][: len(middle)], "the image is that of the shipped prompt"
        learnt = [label for label in train.labels_MS[sample].tolist() if label != IGNORE]
        assert learnt == tokenizer.encode(f" {answer}{END}", add_special_tokens=False)
        assert train.ids_MS[sample, : train.lengths[sample]].tolist() == [*prompt, *learnt]


def test_the_shipped_prompt_is_the_same_with_and_without_variants(train: Samples, validation: Samples) -> None:
    assert [train.prompt(3 * image) for image in range(IMAGES)] == [validation.prompt(image) for image in range(IMAGES)]


def test_validation_asks_the_shipped_question_only(validation: Samples, tokenizer: Any) -> None:
    assert len(validation) == IMAGES == len(validation.labels)
    for sample in range(IMAGES):
        assert "Which?" in text_of(validation, sample, tokenizer)


def test_tiles_are_kept_once_for_each_image(train: Samples, validation: Samples) -> None:
    assert torch.equal(train.tiles, validation.tiles)
    assert train.first == validation.first and train.places == validation.places
    # A square of 2x2 tiles and its overview, or a wide image of 1x2 and its overview.
    assert [end - start for start, end in zip(train.first, train.first[1:], strict=False)] == [5, 3] * (IMAGES // 2)


def test_no_field_of_the_teacher_or_the_source_reaches_a_sample(train: Samples, validation: Samples, tokenizer: Any) -> None:
    texts = [text_of(samples, n, tokenizer) for samples in (train, validation) for n in range(len(samples))]
    assert len(texts) == 4 * IMAGES
    for text in texts:
        assert not [word for word in (CANARY, "8127", "7777", "0815", row(0, "train").sha256[:8]) if word in text], text
    ids = {token for samples in (train, validation) for line in samples.ids_MS.tolist() for token in line}
    assert CANARY not in tokenizer.decode(sorted(ids))


def test_a_frozen_tower_sees_each_tile_once_however_many_samples_there_are(train: Samples, tiny: Path, tmp_path: Path) -> None:
    model = load_model(tiny)
    seen: list[int] = []
    handle = model.model.vision_model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    rows = compute(FAMILY, model, train.tiles, CPU, Spool(tmp_path / "features"), lambda done, total: None)
    order, kept = Order(train.lengths, batch_size=4, seed=(0, 0)), Features(train, FAMILY, CPU, rows)
    learner = Learner(model, FAMILY, "fp32")
    samples = 0
    for step in range(1, order.steps_per_epoch + 1):
        batch = kept.batch(order.of_step(step))
        assert "tiles" not in batch
        samples += len(batch["ids_BS"])
        learner(**batch).backward()
    handle.remove()
    assert samples == 3 * IMAGES, "an epoch is all pairs"
    assert sum(seen) == len(train.tiles) == 4 * IMAGES


def test_a_tower_that_learns_sees_the_image_of_a_batch_once(train: Samples, tiny: Path) -> None:
    model = load_model(tiny)
    learner = Learner(model, FAMILY, "fp32")
    features = Features(train, FAMILY, CPU, None)
    together = features.batch([0, 3, 1, 2])
    assert len(together["tiles"]) == 5 + 3 and len(together["layout"]) == 5 + 3 + 5 + 5
    with torch.no_grad():
        alone = sum(float(learner(**features.batch([sample]))) for sample in (0, 3, 1, 2))
        assert float(learner(**together)) == pytest.approx(alone, rel=1e-5)


def test_samples_of_one_image_are_scored_on_the_same_features(train: Samples, tiny: Path) -> None:
    features = Features(train, FAMILY, CPU, None)
    numbers = [4, 0, 5]
    encoded = features.encoded(numbers, features.of(load_model(tiny), numbers))
    assert [len(image.features_NTC) for image in encoded] == [3, 5, 3]
    assert torch.equal(encoded[0].features_NTC, encoded[2].features_NTC)
    assert [image.prompt_ids for image in encoded] == [train.prompt(number) for number in numbers]


def test_reasons_of_a_source_are_kept_in_the_dataset_and_never_learnt(
    encoder: PromptEncoder, tokenizer: Any, tmp_path: Path
) -> None:
    records = []
    for number in range(40):
        (tmp_path / f"{number}.png").write_bytes(png(number))
        label = list(TASK.classes)[number % 2]
        reason, author = f"A {CANARY} sits there.", CANARY
        records.append({"image_id": str(number), "image_path": f"{number}.png", "label": label, "reason": reason,
                        "confidence": 0.8127, "author": author})  # fmt: skip
    (tmp_path / "labels.json").write_text(json.dumps(records))
    run_file = check_run_file({"run": {
        "name": "reasons", "task": TASK.model_dump(mode="json"), "device": {"canvas_px": 32, "longest_edge_px": TILE_PX},
        "student": {"model": "tiny"}, "labeller": {"source": {"kind": "records", "path": "labels.json"}, "near_copies": False},
        "trainer": {"phases": [{}]},
    }}, tmp_path / "run.yaml")  # fmt: skip
    store, environment = FolderStore(tmp_path / "store"), Environment(scratch=tmp_path / "scratch", threads=1)
    artifact, _ = run_stage("labeller", run_file, store, environment, Progress())
    assert artifact is not None
    folder = artifact.fetch(tmp_path / "dataset")
    table = pq.read_table(next(folder.glob("train-*.parquet")))
    assert set(table["teacher_reason"].to_pylist()) == {f"A {CANARY} sits there."}
    samples = read(folder, "train", encoder, tmp_path)
    assert len(samples) == 3 * len(samples.labels) == 3 * len(table)
    assert not [n for n in range(len(samples)) if CANARY in (text := text_of(samples, n, tokenizer)) or "8127" in text]
