"""Tokenizer and image processor of a checkpoint folder, as files.

llama.cpp's converter takes `size.longest_edge` from preprocessor_config.json and then lets processor_config.json override it
(conversion/base.py of the pin); where it is missing it silently writes one tile. So both files are always written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from pocketvlm.errors import UserError

CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""SmolVLM's layout of a conversation, as the public model cards describe it."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a checkpoint folder. Raises UserError when it has none that can be read."""
    try:
        tokenizer: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"{folder}: has no tokenizer that can be read ({why}); add the published files") from error
    return tokenizer


def save_processor(folder: Path, tokenizer: PreTrainedTokenizerFast, *, tile_px: int, longest_edge_px: int) -> None:
    """Tokenizer, template and both processor files, saying the device's tile budget."""
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": longest_edge_px},
        max_image_size={"longest_edge": tile_px},
        do_image_splitting=True,
        do_resize=True,
        do_convert_rgb=True,
        resample=1,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor.save_pretrained(folder)
    preprocessor = folder / "preprocessor_config.json"
    settings = json.loads(preprocessor.read_text())
    settings["image_processor_type"] = "Idefics3ImageProcessor"
    write_json(preprocessor, settings)
    write_json(folder / "processor_config.json", {"processor_class": "SmolVLMProcessor", "image_processor": settings})
    tokenizer.save_pretrained(folder)


def write_json(path: Path, data: dict[str, Any]) -> None:
    """The same bytes for the same data."""
    path.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")
