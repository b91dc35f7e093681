"""Answers inside the grammar: against a plain reference that tries every text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pocketvlm.student import forward, pixels
from pocketvlm.student.grammar import AllowedAnswers, grammar_text, prefix_clashes, token_bytes
from pocketvlm.student.prompt import PromptEncoder
from pocketvlm.student.scoring import Layout, encode_images, score

LAYOUT = Layout(tile_px=32, longest_edge_px=32)


def pictures(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(count)]


def test_grammar_names_every_class_after_one_space() -> None:
    assert grammar_text(["a", "b c"]) == 'root ::= " a" | " b c"\n'


def test_tokens_are_read_as_bytes() -> None:
    assert token_bytes("Ġab") == b" ab"
    assert token_bytes("Ċ") == b"\n"


def test_class_names_that_begin_another_are_found() -> None:
    assert prefix_clashes(["no", "none", "yes"]) == [("no", "none")]


@torch.inference_mode()
def reference(model: Any, encoder: PromptEncoder, allowed: AllowedAnswers, image: Image.Image) -> tuple[bytes, float]:
    """One image, no batches, no cached features, no shortcuts: step by step to the end of the answer."""
    tiles, cut = pixels.tiles(image, tile_px=32, longest_edge_px=32)
    features = forward.vision_features(model, forward.normalise(torch.from_numpy(tiles), torch.float32))
    answered, ids, confidence = b"", encoder.prompt(cut), 1.0
    texts = [f" {name}".encode() for name in allowed.classes]
    while answered not in texts or any(text != answered and text.startswith(answered) for text in texts):
        hidden = forward.hidden(model, forward.embed(model, torch.tensor([ids]), features, encoder.image_id))
        values = forward.next_token_log_probabilities(model, hidden, [len(ids) - 1])[0]
        choices = allowed.following(answered)
        total = sum(math.exp(values[i]) for i in choices)
        best = max(sorted(choices), key=lambda i: values[i].item())
        if sum(text.startswith(answered) for text in texts) > 1:  # how a decided answer is spelt says nothing about it
            confidence *= math.exp(values[best]) / total
        ids, answered = [*ids, best], choices[best]
    return answered, confidence


def test_scores_equal_a_plain_step_by_step_reference(model: Any, encoder: PromptEncoder, tokenizer: Any) -> None:
    classes = ["zero", "one", "seven", "nine", "none of these"]
    allowed = AllowedAnswers(classes, tokenizer.get_vocab(), tokenizer.all_special_ids)
    images = pictures(7)
    answers = score(model, encoder, allowed, list(encode_images(model, encoder, LAYOUT, images)), batch_size=3)
    for image, answer in zip(images, answers, strict=True):
        text, confidence = reference(model, encoder, allowed, image)
        assert f" {classes[answer.index]}".encode() == text
        assert answer.confidence == pytest.approx(confidence, rel=1e-3)


def test_first_step_names_all_that_the_grammar_allows(model: Any, encoder: PromptEncoder, allowed: AllowedAnswers) -> None:
    answer = score(model, encoder, allowed, list(encode_images(model, encoder, LAYOUT, pictures(1))))[0]
    assert set(answer.first_step) == set(allowed.following(b""))
    assert all(value < 0 for value in answer.first_step.values())


def test_whole_forward_equals_transformers_own(model: Any, encoder: PromptEncoder) -> None:
    """Ours is cut in three steps; transformers' own forward on the same ids and pixels must give the same logits."""
    tiles, cut = pixels.tiles(pictures(1)[0], tile_px=32, longest_edge_px=64)
    ids = torch.tensor([encoder.prompt(cut)])
    values = forward.normalise(torch.from_numpy(tiles), torch.float32)
    with torch.inference_mode():
        theirs = model(input_ids=ids, pixel_values=values[None]).logits
        embeddings = forward.embed(model, ids, forward.vision_features(model, values), encoder.image_id)
        ours = model.lm_head(forward.hidden(model, embeddings))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_image_tokens_without_features_are_refused(model: Any, encoder: PromptEncoder) -> None:
    _, cut = pixels.tiles(pictures(1)[0], tile_px=32, longest_edge_px=64)
    features = torch.zeros(2, encoder.tokens_per_tile, model.model.connector.modality_projection.proj.in_features)
    with pytest.raises(ValueError, match="image tokens for 2 tiles"):
        forward.embed(model, torch.tensor([encoder.prompt(cut)]), features, encoder.image_id)


def test_repeated_tiles_are_encoded_once() -> None:
    tiles, _ = pixels.tiles(pictures(1)[0], tile_px=32, longest_edge_px=32)
    distinct, places = forward.distinct_tiles(tiles)
    assert (len(distinct), places) == (1, [0, 0])
