"""Scoring a closed set of answers on kept features, against writing one out with `generate` image by image."""

from __future__ import annotations

from typing import Any

import torch

from bench.clock import Spent, measured
from bench.rivals import processor
from bench.setting import QUESTION, Setting
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.grammar import AllowedAnswers
from pocketvlm.student.prompt import answer_lead
from pocketvlm.student.scoring import EncodedImage, encode_images, score

NEW_TOKENS = 2
"""The word and the end token: what a trained model writes. Random weights would go on to any limit."""


def prefix_free_words(tokenizer: Any) -> list[str]:
    """Words of one token each, none of which begins another."""
    words = sorted(token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ") and token[1:].isalnum())
    return [word for word, following in zip(words, [*words[1:], ""], strict=True) if not following.startswith(word)]


class Answers:
    """A model with the features of the images, ready for both sides."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.model = load_model(setting.checkpoint, dtype=setting.dtype)
        self.images = setting.pictures[: setting.scored_images]
        self._processor = processor(setting, longest_edge_px=setting.geometry.tile_px)
        self.encoded: list[EncodedImage] = []
        self._tokenizer: Any = setting.encoder.tokenizer
        self.labels = prefix_free_words(self._tokenizer)

    def encode(self) -> Spent:
        """Keeps the features of all images."""
        setting = self._setting
        with measured(len(self.images)) as spent:
            self.encoded = list(encode_images(setting.geometry.family, self.model, setting.encoder, setting.eye, self.images))
        return spent

    def score(self, labels: int) -> Spent:
        """Ours, on kept features, with that many labels. One pass decides: every label begins with a token of its own."""
        names = self.labels[:labels]
        vocabulary: dict[str, int] = self._tokenizer.get_vocab()
        wanted = {f"Ġ{name}" for name in names}
        others = [number for token, number in vocabulary.items() if token not in wanted]
        setting = self._setting
        lead = answer_lead(setting.encoder.shipped)
        allowed = AllowedAnswers([lead + name for name in names], vocabulary, others)
        with measured(len(self.images)) as spent:
            score(setting.geometry.family, self.model, setting.encoder, allowed, self.encoded)
        spent.notes = {"labels": len(names), "tokens": max(len(image.prompt_ids) for image in self.encoded)}
        return spent

    @torch.inference_mode()
    def generate(self) -> Spent:
        """The usual loop: processor, one tile, `generate`, one image after the other."""
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        prompt = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        written = 0
        with measured(len(self.images)) as spent:
            for image in self.images:
                inputs = self._processor(text=prompt, images=[image], return_tensors="pt")
                inputs["pixel_values"] = inputs["pixel_values"].to(self._setting.dtype)
                answer = self.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
                written += answer.shape[1] - inputs["input_ids"].shape[1]
        spent.notes = {"tokens": inputs["input_ids"].shape[1], "new_tokens_an_image": written / len(self.images)}
        return spent
