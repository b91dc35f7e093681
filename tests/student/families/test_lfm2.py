"""What only LFM2-VL has; test_canvas.py has what it shares with other families."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from canvas_students import Shipped, Student, every_token, nats

from pocketvlm.student.families import geometry_of

lfm2 = pytest.mark.parametrize("student", ["LFM2-VL"], indirect=True)


@lfm2
def test_patches_are_rows_of_the_canvas_with_channels_last(student: Student) -> None:
    image = student.canvases(1)[0]
    patches = student.eye.look(image).tiles[0]
    side = student.geometry.patch_px
    in_a_row = image.width // side
    for row, col in ((0, 0), (0, 1), (1, 0), (in_a_row - 1, 3)):
        cut = np.asarray(image)[row * side : (row + 1) * side, col * side : (col + 1) * side].astype(np.float32)
        np.testing.assert_allclose(patches[row * in_a_row + col], (cut / 127.5 - 1).ravel(), atol=1e-6)


@lfm2
def test_the_head_is_tied_by_either_name_of_the_key_and_by_default(student: Student) -> None:
    config = json.loads((student.folder / "config.json").read_text())
    for key in ("tie_embedding", "tie_word_embeddings"):
        config.pop(key, None)
    assert geometry_of(config, "config.json").tied_head
    for key in ("tie_embedding", "tie_word_embeddings"):
        assert not geometry_of(config | {key: False}, "config.json").tied_head


@lfm2
def test_the_token_that_llama_cpp_puts_first_is_in_the_ids_and_not_in_the_text(student: Student) -> None:
    first = student.encoder.prompt(student.eye.layout((student.device.canvas_px,) * 2))[0]
    assert first == student.model.config.text_config.bos_token_id
    assert student.family.template.bos not in student.encoder.shipped


@pytest.mark.llamacpp
@lfm2
def test_parity_shows_a_lost_first_token(shipped: Shipped) -> None:
    student = shipped.student
    images = student.encode(student.canvases())
    with torch.inference_mode():
        hidden = [
            student.family.prefill(student.model, torch.tensor([image.prompt_ids[1:]]), image.features_NTC)[0] for image in images
        ]
        lost = [torch.log_softmax(student.family.logits(student.model, one[0, -1]).float(), dim=-1).tolist() for one in hidden]
    assert nats(shipped.said["f32", "f16"], [dict(enumerate(values)) for values in lost]) > 0.02
    assert nats(shipped.said["f32", "f16"], every_token(student, images)) < 0.01
