"""The tiny student: a real SmolVLM of about two million random weights, and a tokenizer of our own.

For the demo, the tests and the cluster. Everything about it is SmolVLM's: class, layout of the vocabulary,
pre-tokenizer, chat template; only the numbers are small. Equal seeds give equal bytes; a change of those raises
`base.TINY_FORMAT`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from pocketvlm.student.checkpoint import quiet
from pocketvlm.student.families.idefics3 import END, FAKE, GLOBAL, IMAGE, MAX_GRID_SIDE, START
from pocketvlm.student.processor_files import CHAT_TEMPLATE, save_processor

TILE_PX, PATCH_PX, SCALE_FACTOR = 32, 8, 2
TEXT_WIDTH, VISION_WIDTH, LAYERS = 128, 128, 4
LEARNED_TOKENS = 544

CORPUS = """
Classify this image into one of these classes. Which digit is in this picture? Digit: zero one two three four five six
seven eight nine. Element: water land fire wood metal. What does the picture show? The answer is: yes, no, none.
Look at the objects, materials, colours, textures and light of the image and name its class.
User: Assistant: system: Reasoning: Answer: label: class: image: photo: picture: question: surface: panel: dish:
clean dusty snow covered damage bird drop food drink title list items true false left right top bottom dark bright
"""
JSON_CORPUS = """
{"is_food":1,"image_title":"apple, bread","food_items":["apple","bread"],"drink_items":["milk"]}
{"is_food":1,"image_title":"egg, cheese","food_items":["egg","cheese"],"drink_items":["tea","juice"]}
{"is_food":0,"image_title":"empty table","food_items":[],"drink_items":[]}
apple bread egg cheese milk tea juice water The picture shows Reasoning: The picture shows the digit
"""
"""Keys and words of plates and cups: their JSON takes 31 tokens with it and 71 without."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with SmolLM's pre-tokenizer and SmolVLM's special tokens, learned from a fixed text."""
    return with_special_tokens(learn_tokens())


def learn_tokens() -> Tokenizer:
    """The part of the vocabulary that CORPUS teaches; ids 0 to 2 are the published ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    first = ["<|endoftext|>", START, "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=LEARNED_TOKENS,
        min_frequency=1,
        special_tokens=first,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS, *[JSON_CORPUS] * 2, *["\n\n"] * 8], trainer)
    return tokenizer


def with_special_tokens(tokenizer: Tokenizer, *, reserved: int = 0) -> PreTrainedTokenizerFast:
    """Appends SmolVLM's special tokens in the published order; `reserved` unused ones stand before the last."""
    unused = [f"<|reserved_special_token_{i}|>" for i in range(reserved)]
    places = [f"<row_{r}_col_{c}>" for r in range(1, MAX_GRID_SIDE + 1) for c in range(1, MAX_GRID_SIDE + 1)]
    names = [GLOBAL, *places, FAKE, IMAGE, *unused, END]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        add_bos_token=False,
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> SmolVLMConfig:
    """SmolVLM's config with small numbers; every width is a multiple of 32, the block of 8- and 4-bit types."""
    vocabulary = -(-len(tokenizer) // 32) * 32
    text: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["VLlama3ForCausalLM"],
        "vocab_size": vocabulary,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 3 * TEXT_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": TEXT_WIDTH // 4,
        "rope_theta": 100000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision: dict[str, Any] = {
        "hidden_size": VISION_WIDTH,
        "intermediate_size": 3 * VISION_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "image_size": TILE_PX,
        "patch_size": PATCH_PX,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
    }
    return SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=SCALE_FACTOR,
        vocab_size=vocabulary,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["SmolVLMForConditionalGeneration"],
    )


def build_tiny(folder: Path, *, seed: int, longest_edge_px: int) -> Path:
    """Writes the tiny student as a checkpoint folder in Hugging Face layout and returns the folder."""
    quiet()
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SmolVLMForConditionalGeneration(tiny_config(tokenizer))
    folder.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16).save_pretrained(folder)
    save_processor(folder, tokenizer, tile_px=TILE_PX, longest_edge_px=longest_edge_px)
    return folder
