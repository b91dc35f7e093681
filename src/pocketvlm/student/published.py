"""Checkpoints of the published sizes with random weights: real shapes, real vocabulary size, real ids, no download.

For tests and the benchmark at real size. Dimensions are those of the published config.json files (shared facts on
llama.cpp and SmolVLM). The tokenizer is the tiny student's, filled up with tokens that no text makes, so that every
special token has its published id and the embedding its published height.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMForConditionalGeneration

from pocketvlm.student.checkpoint import quiet
from pocketvlm.student.families.idefics3 import IMAGE
from pocketvlm.student.processor_files import save_processor
from pocketvlm.student.tiny import learn_tokens, with_special_tokens

TILE_PX, PATCH_PX, SCALE_FACTOR = 512, 16, 4
VOCABULARY, FIRST_SPECIAL_ID, RESERVED = 49280, 49152, 88
"""<global-img> is FIRST_SPECIAL_ID, <image> 49190, and RESERVED ids later <end_of_utterance> is the last: 49279."""
UNUSED = "unused"
"""Words of the filling: `unused` and the token's id."""


@dataclass(frozen=True)
class Size:
    """A published text model; vision tower and connector are the same in both."""

    width: int
    inner_width: int
    layers: int
    heads: int
    key_value_heads: int
    parameters: int
    """Of the whole model."""


SIZES = {
    "256M": Size(576, 1536, 30, 9, 3, 256_484_928),
    "500M": Size(960, 2560, 32, 15, 5, 507_482_304),
}


def build_published_tokenizer() -> PreTrainedTokenizerFast:
    """49,280 tokens with SmolVLM's published special ids; text becomes the tiny student's tokens."""
    content = json.loads(learn_tokens().to_str())
    vocabulary = content["model"]["vocab"]
    # No merge leads to them, so no text holds them. "Ġ" is a space: ordinary words to the converter and to a grammar.
    vocabulary.update({f"Ġ{UNUSED}{i}": i for i in range(len(vocabulary), FIRST_SPECIAL_ID)})
    return with_special_tokens(Tokenizer.from_str(json.dumps(content)), reserved=RESERVED)


def published_config(size: Size, tokenizer: PreTrainedTokenizerFast) -> SmolVLMConfig:
    """The published config.json in numbers."""
    ids: dict[str, Any] = {
        "vocab_size": VOCABULARY, "tie_word_embeddings": False, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    text: dict[str, Any] = dict(
        model_type="llama", architectures=["VLlama3ForCausalLM"], hidden_size=size.width, intermediate_size=size.inner_width,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.key_value_heads,
        head_dim=64, rope_theta=100000.0, rms_norm_eps=1e-5, max_position_embeddings=8192, **ids,
    )  # fmt: skip
    vision: dict[str, Any] = {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": TILE_PX,
        "patch_size": PATCH_PX, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh",
    }  # fmt: skip
    return SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=SCALE_FACTOR, image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        architectures=["SmolVLMForConditionalGeneration"], **ids,
    )  # fmt: skip


def build_published(folder: Path, *, size: str = "256M", seed: int, longest_edge_px: int) -> Path:
    """Writes a checkpoint of random bf16 weights in Hugging Face layout and returns the folder.

    The weights are those of a model before its training, normal with deviation 0.02. That is enough for answers that
    depend on the image: another image moves the log-probabilities of answer tokens by about 1 nat, rounding on the way
    to llama.cpp by at most 0.005. Takes seconds, and 8 bytes of memory a weight.
    """
    quiet()
    tokenizer = build_published_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmolVLMForConditionalGeneration(published_config(SIZES[size], tokenizer))
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_processor(folder, tokenizer, tile_px=TILE_PX, longest_edge_px=longest_edge_px)
    return folder
