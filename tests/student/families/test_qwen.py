"""What only Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 have; test_canvas.py has what they share with other families."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from canvas_students import FAULT_NATS, QWEN, Shipped, Student, every_token, nats
from PIL import Image

from pocketvlm.errors import UserError
from pocketvlm.student.families import geometry_of
from pocketvlm.student.families.qwen_vl import image_positions
from pocketvlm.student.processor_files import load_tokenizer

every_qwen = pytest.mark.parametrize("student", QWEN, indirect=True)


def test_positions_count_the_image_by_its_side() -> None:
    """Two words, 2x2 image tokens, two words; and one word before the image in the second sample."""
    image_BS = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0]]).bool()
    time, height, width = image_positions(image_BS, 4).tolist()
    assert time == [[0, 1, 2, 2, 2, 2, 4, 5], [0, 1, 1, 1, 1, 3, 4, 5]]
    assert height == [[0, 1, 2, 2, 3, 3, 4, 5], [0, 1, 1, 2, 2, 3, 4, 5]]
    assert width == [[0, 1, 2, 3, 2, 3, 4, 5], [0, 1, 2, 1, 2, 3, 4, 5]]


@every_qwen
def test_an_image_that_is_no_canvas_is_refused(student: Student) -> None:
    with pytest.raises(ValueError, match="is no canvas of"):
        student.eye.layout((student.geometry.token_px, 2 * student.geometry.token_px))


@every_qwen
def test_a_number_that_llama_cpp_does_not_read_is_refused(student: Student) -> None:
    config = json.loads((student.folder / "config.json").read_text())
    config["vision_config"]["spatial_merge_size"] = 4
    with pytest.raises(UserError, match=r"spatial_merge_size is 4, and llama\.cpp takes 2"):
        geometry_of(config, "config.json")


@pytest.mark.parametrize("student", ["Qwen2-VL"], indirect=True)
def test_the_processor_that_ships_leaves_the_canvas_alone(student: Student, tmp_path: Path) -> None:
    """A published file has its limits under older names; here the lower one is above the canvas."""
    base, merged = tmp_path / "base", tmp_path / "merged"
    merged.mkdir()
    shutil.copytree(student.folder, base)
    settings = json.loads((base / "preprocessor_config.json").read_text())
    del settings["size"]
    settings |= {"min_pixels": 200704, "max_pixels": 12845056, "image_processor_type": "Qwen2VLImageProcessorFast"}
    (base / "preprocessor_config.json").write_text(json.dumps(settings))
    student.family.save_processor(merged, base, student.geometry, student.device)
    for name in ("preprocessor_config.json", "processor_config.json"):
        written = json.loads((merged / name).read_text())
        written = written.get("image_processor", written)
        assert written["size"] == {"shortest_edge": student.device.canvas_px**2, "longest_edge": 12845056}
        assert written["image_processor_type"] == "Qwen2VLImageProcessor"
    assert load_tokenizer(merged).get_vocab() == load_tokenizer(base).get_vocab()


@pytest.mark.parametrize("student", ["Qwen2-VL"], indirect=True)
def test_a_processor_that_does_not_fit_is_refused(student: Student, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(student.folder, folder)
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"patch_size": 16}))
    with pytest.raises(UserError, match="patch_size is 16, not 14"):
        student.family.eye(student.geometry, student.device, folder)
    path.unlink()
    with pytest.raises(UserError, match=r"has no preprocessor_config\.json"):
        student.family.eye(student.geometry, student.device, folder)


@pytest.mark.llamacpp
@every_qwen
def test_parity_shows_an_image_that_is_counted_on_as_text_is(shipped: Shipped) -> None:
    images = shipped.student.canvases()
    moved = nats(shipped.said["f32", "f16"], [flat_positions(shipped.student, image) for image in images])
    print(shipped.student.name, f"positions {moved:.3f}")
    assert moved > FAULT_NATS


def flat_positions(student: Student, image: Image.Image) -> dict[int, float]:
    """transformers' own forward with the image's tokens counted on as text is."""
    given = student.inputs(image)
    length = given["input_ids"].shape[1]
    with torch.inference_mode():
        logits = student.model(**given, position_ids=torch.arange(length).expand(3, 1, length)).logits
    return dict(enumerate(torch.log_softmax(logits[0, -1], dim=-1).tolist()))


@pytest.mark.llamacpp
@pytest.mark.parametrize("student", ["Qwen3-VL"], indirect=True)
def test_features_for_the_first_text_layers_are_not_lost(shipped: Shipped) -> None:
    student = shipped.student
    width = student.model.config.text_config.hidden_size
    images = [
        replace(image, features_NTC=image.features_NTC[..., :width])
        for image in student.encode(student.canvases())
    ]
    assert nats(shipped.said["f32", "f16"], every_token(student, images)) > FAULT_NATS
