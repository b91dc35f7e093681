"""How answers are found right: in one pass exactly where free greedy writing gives them, and by reading what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pocketvlm.errors import UserError
from pocketvlm.run_file import ExtractField, Task
from pocketvlm.stages.training.features import Features
from pocketvlm.stages.training.learner import Learner
from pocketvlm.stages.training.samples import Samples
from pocketvlm.stages.training.team import Team
from pocketvlm.stages.training.validate import WRITTEN_IMAGES, Forced, Scored, Validator, Written, judge_of
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import FAMILIES, read_geometry
from pocketvlm.student.families.idefics3 import TileEye
from pocketvlm.student.generation import generate
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.prompt import IGNORE, PromptEncoder
from pocketvlm.student.tasks import kind_of
from pocketvlm.student.tiny import TILE_PX, build_tiny

FAMILY = FAMILIES["SmolVLMForConditionalGeneration"]
LABELS = Task(question="Which?", classes={"leaf": "", "stone": ""})
REASONS = Task(question="Which?", classes={"leaf": "", "stone": ""}, answer="reasoning", reasons=["It is {label}."])
FIELDS = Task(kind="extract", question='Say {"n":1}', fields={"n": ExtractField(type="integer", description="a number")})
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("validate") / "tiny", seed=0, longest_edge_px=TILE_PX)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load_model(tiny)


def encoder_of(tiny: Path, task: Task) -> PromptEncoder:
    return PromptEncoder(load_tokenizer(tiny), read_geometry(tiny), task)


def features(encoder: PromptEncoder, answers: list[list[int]]) -> Features:
    """Images of noise, one for each answer (its ids)."""
    draw, eye = np.random.default_rng(0), TileEye(TILE_PX, TILE_PX)
    seen = [eye.look(Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))) for _ in answers]
    prompts = [encoder.prompt(sight.layout) for sight in seen]
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    ids = [(p + a + [encoder.end_id] * longest)[:longest] for p, a in zip(prompts, answers, strict=True)]
    labels = [([IGNORE] * len(p) + a + [IGNORE] * longest)[:longest] for p, a in zip(prompts, answers, strict=True)]
    samples = Samples(
        torch.tensor(ids), torch.tensor(labels), [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)],
        [len(p) for p in prompts], list(range(len(answers))), torch.cat([torch.from_numpy(sight.tiles) for sight in seen]),
        list(range(len(answers) + 1)), [sight.places for sight in seen], ["leaf"] * len(answers),
    )  # fmt: skip
    return Features(samples, FAMILY, CPU, None)


def test_one_pass_tells_whether_greedy_writing_would_give_the_answer(tiny: Path, model: Any) -> None:
    encoder = encoder_of(tiny, FIELDS)
    blank = features(encoder, [[5]] * 4)
    images = blank.encoded(range(4), blank.of(model, range(4)))
    written = generate(FAMILY, model, encoder, images, max_new_tokens=6)
    answers = [list(answer.ids) for answer in written]
    answers[1][-1] = (answers[1][-1] + 1) % 400
    answers[2][0] = (answers[2][0] + 1) % 400
    answers[3] = answers[3][:4]
    known = features(encoder, answers)
    learner = Learner(model, FAMILY, "fp32").eval()
    foreseen = learner.foreseen(**known.text(range(4)), features_FTC=known.of(model, range(4)))
    assert foreseen.tolist() == [True, False, False, True]
    assert Forced(known)(learner, range(4), known.of(model, range(4))) == 2
    assert Forced(known)(learner, [0, 2], known.rows_of([0, 2], range(4), known.of(model, range(4)))) == 1


def test_each_kind_of_task_has_its_judge(tiny: Path) -> None:
    for task, judge in ((LABELS, Scored), (FIELDS, Forced), (REASONS, Written)):
        encoder = encoder_of(tiny, task)
        assert type(judge_of(features(encoder, [[5]] * 2), encoder, kind_of(task), 8)) is judge


def test_reasons_are_written_for_some_images_spread_over_the_split(tiny: Path, model: Any) -> None:
    encoder = encoder_of(tiny, REASONS)
    many = features(encoder, [[5]] * (2 * WRITTEN_IMAGES))
    judge = judge_of(many, encoder, kind_of(REASONS), 4)
    assert judge.images == list(range(0, 2 * WRITTEN_IMAGES, 2))
    few = features(encoder, [[5]] * 3)
    validator = Validator(few, judge_of(few, encoder, kind_of(REASONS), 4), Team(CPU))
    found = validator(Learner(model, FAMILY, "fp32"), 7, stopped=lambda: False)
    assert found is not None and (found.step, found.accuracy) == (7, 0.0) and found.loss > 1
    assert validator(Learner(model, FAMILY, "fp32"), 7, stopped=lambda: True) is None



def memory_for(images: int, model: Any) -> Any:
    """The text model of a device whose memory does for so many images at once; `.remove()` takes the limit away."""

    def refuse(module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        if len(kwargs["inputs_embeds"]) > images:
            raise torch.OutOfMemoryError("CUDA out of memory (planted)")

    return FAMILY.text_model(model).register_forward_pre_hook(refuse, with_kwargs=True)


def test_memory_that_does_not_do_looks_at_fewer_images_at_once_and_finds_the_same(tiny: Path, model: Any) -> None:
    encoder, said = encoder_of(tiny, LABELS), list[int]()
    known = features(encoder, [[5]] * 40)
    judge, learner = judge_of(known, encoder, kind_of(LABELS), 4), Learner(model, FAMILY, "fp32")
    whole = Validator(known, judge, Team(CPU))(learner, 1, stopped=lambda: False)
    limit = memory_for(5, model)
    try:
        small = Validator(known, judge, Team(CPU), said.append)(learner, 1, stopped=lambda: False)
    finally:
        limit.remove()
    assert said == [16, 8, 4], "once for each size, not for each piece"
    assert whole is not None and small is not None and small.accuracy == whole.accuracy
    assert small.loss == pytest.approx(whole.loss, abs=1e-5)


def test_a_single_image_that_does_not_fit_is_said(tiny: Path, model: Any) -> None:
    encoder = encoder_of(tiny, LABELS)
    known, limit = features(encoder, [[5]] * 2), memory_for(0, model)
    try:
        with pytest.raises(UserError, match="a single image of validation does not fit"):
            Validator(known, judge_of(known, encoder, kind_of(LABELS), 4), Team(CPU))(
                Learner(model, FAMILY, "fp32"), 1, stopped=lambda: False
            )
    finally:
        limit.remove()
