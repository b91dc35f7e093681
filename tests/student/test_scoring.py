"""Answers inside the grammar: against a plain reference that tries every text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pocketvlm.student import forward, pixels
from pocketvlm.student.families.idefics3 import SMOLVLM, TileEye, normalise
from pocketvlm.student.generation import generate, next_tokens
from pocketvlm.student.grammar import AllowedAnswers, token_bytes
from pocketvlm.student.prompt import PromptEncoder
from pocketvlm.student.scoring import encode_images, score

EYE = TileEye(tile_px=32, longest_edge_px=32)


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]


def test_tokens_are_read_as_bytes() -> None:
    assert token_bytes("Ġab") == b" ab"
    assert token_bytes("Ċ") == b"\n"


@torch.inference_mode()
def reference(
    model: Any, encoder: PromptEncoder, allowed: AllowedAnswers, classes: list[str], image: Image.Image
) -> tuple[bytes, float]:
    """One image, no batches, no cached features, no shortcuts: step by step to the end of the answer."""
    tiles, cut = pixels.tiles(image, tile_px=32, longest_edge_px=32)
    features = SMOLVLM.features(model, torch.from_numpy(tiles))
    answered, ids, confidence = b"", encoder.prompt(cut), 1.0
    texts = [f" {name}".encode() for name in classes]
    while answered not in texts or any(text != answered and text.startswith(answered) for text in texts):
        hidden, _ = SMOLVLM.prefill(model, torch.tensor([ids]), features)
        values = forward.next_token_log_probabilities(SMOLVLM, model, hidden, [len(ids) - 1])[0]
        choices = allowed.following(answered)
        total = sum(math.exp(values[i]) for i in choices)
        best = max(sorted(choices), key=lambda i: values[i].item())
        if sum(text.startswith(answered) for text in texts) > 1:  # how a decided answer is spelt says nothing about it
            confidence *= math.exp(values[best]) / total
        ids, answered = [*ids, best], choices[best]
    return answered, confidence


def test_scores_equal_a_plain_step_by_step_reference(model: Any, encoder: PromptEncoder, tokenizer: Any) -> None:
    classes = ["zero", "one", "seven", "nine", "none of these"]
    allowed = AllowedAnswers([f" {name}" for name in classes], tokenizer.get_vocab(), tokenizer.all_special_ids)
    images = pictures(7)
    answers = score(SMOLVLM, model, encoder, allowed, list(encode_images(SMOLVLM, model, encoder, EYE, images)), batch_size=3)
    for image, answer in zip(images, answers, strict=True):
        text, confidence = reference(model, encoder, allowed, classes, image)
        assert f" {classes[answer.index]}".encode() == text
        assert answer.confidence == pytest.approx(confidence, rel=1e-3)


def test_first_step_names_all_that_the_grammar_allows(model: Any, encoder: PromptEncoder, allowed: AllowedAnswers) -> None:
    answer = score(SMOLVLM, model, encoder, allowed, list(encode_images(SMOLVLM, model, encoder, EYE, pictures(1))))[0]
    assert set(answer.first_step) == set(allowed.following(b""))
    assert all(value < 0 for value in answer.first_step.values())


def test_whole_forward_equals_transformers_own(model: Any, encoder: PromptEncoder) -> None:
    """Ours is cut in three steps; transformers' own forward on the same ids and pixels must give the same logits."""
    tiles, cut = pixels.tiles(pictures(1)[0], tile_px=32, longest_edge_px=64)
    ids = torch.tensor([encoder.prompt(cut)])
    with torch.inference_mode():
        theirs = model(input_ids=ids, pixel_values=normalise(torch.from_numpy(tiles))[None]).logits
        hidden, _ = SMOLVLM.prefill(model, ids, SMOLVLM.features(model, torch.from_numpy(tiles)))
        ours = SMOLVLM.logits(model, hidden)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_image_tokens_without_features_are_refused(model: Any, encoder: PromptEncoder, geometry: Any) -> None:
    _, cut = pixels.tiles(pictures(1)[0], tile_px=32, longest_edge_px=64)
    features = torch.zeros(2, geometry.tokens_per_tile, model.model.connector.modality_projection.proj.in_features)
    with pytest.raises(ValueError, match="image tokens for 2 tiles"):
        SMOLVLM.prefill(model, torch.tensor([encoder.prompt(cut)]), features)


def test_repeated_tiles_are_encoded_once() -> None:
    tiles, _ = pixels.tiles(pictures(1)[0], tile_px=32, longest_edge_px=32)
    distinct, places = pixels.distinct(tiles)
    assert (len(distinct), places) == (1, [0, 0])


def test_free_answers_equal_those_without_a_cache(model: Any, encoder: PromptEncoder) -> None:
    """Two layouts, so that prompts of two lengths come mixed; batches share a cache of keys and values."""
    eyes = [EYE, TileEye(tile_px=32, longest_edge_px=64)]
    images = [image for eye in eyes for image in encode_images(SMOLVLM, model, encoder, eye, pictures(3))][::2]
    written = generate(SMOLVLM, model, encoder, images, max_new_tokens=9, batch_size=2)
    for image, answer in zip(images, written, strict=True):
        ids, tiles = torch.tensor([image.prompt_ids]), image.features_NTC[image.places]
        with torch.inference_mode():
            for _ in range(9):
                hidden, _ = SMOLVLM.prefill(model, ids, tiles)
                ids = torch.cat([ids, SMOLVLM.logits(model, hidden[:, -1:]).argmax(-1)], dim=1)
        theirs = ids[0, len(image.prompt_ids) :].tolist()
        end = theirs.index(encoder.end_id) if encoder.end_id in theirs else len(theirs)
        assert (answer.ids, answer.ended) == (theirs[:end], end < len(theirs))


def test_tokens_after_a_text_are_the_likely_ones_and_no_others(model: Any, encoder: PromptEncoder) -> None:
    (image,) = encode_images(SMOLVLM, model, encoder, EYE, pictures(1))
    (after,), (at_once,) = (next_tokens(SMOLVLM, model, encoder, [image], after=text) for text in (" one", ""))
    assert after != at_once
    assert 0.99 < sum(math.exp(value) for value in after.values()) <= 1.0001
    assert min(after.values()) >= -10
