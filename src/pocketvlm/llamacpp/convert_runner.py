"""Runs the pinned convert_hf_to_gguf.py, and knows what it cannot: tokenizers that are not published, and names that
transformers gives since.

The converter recognises a pre-tokenizer by a hash over token ids, so every new vocabulary is unknown to it, a trained
one of our own and one that grew by a token alike. What llama.cpp needs is the *pre-tokenizer*, and that is written
plainly in tokenizer.json: where it is one of PRE_TOKENIZERS, its name is the answer; anything else stays the converter's error.

Both files are made in one process: importing torch and transformers takes longer than converting a small model.

Usage: convert_runner.py LLAMA_CPP_HOME CHECKPOINT TEXT.gguf TEXT-TYPE MMPROJ.gguf MMPROJ-TYPE
"""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any

_BYTES = ("ByteLevel", {"add_prefix_space": False, "use_regex": False})


def _split(regex: str) -> tuple[str, dict[str, Any]]:
    return "Split", {"pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


PRE_TOKENIZERS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "smollm": [("Digits", {"individual_digits": True}), ("ByteLevel", {"add_prefix_space": False, "use_regex": True})],
    "qwen2": [
        _split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
        _BYTES,
    ],
    "lfm2": [
        _split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        _BYTES,
    ],
    "qwen35": [
        _split(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        _BYTES,
    ],
}
"""llama.cpp's name -> the steps that tokenizer.json writes for it (src/llama-vocab.cpp of the pin quotes their regexes)."""


def pre_tokenizer_name(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """llama.cpp's name of tokenizer.json's `pre_tokenizer`, if it splits text as one of PRE_TOKENIZERS does."""
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer and pre_tokenizer.get("type") == "Sequence" else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return None
    return next((name for name, wanted in PRE_TOKENIZERS.items() if _same(steps, wanted)), None)


def _same(steps: list[dict[str, Any]], wanted: list[tuple[str, dict[str, Any]]]) -> bool:
    return len(steps) == len(wanted) and all(
        step.get("type") == kind and all(step.get(key) == value for key, value in settings.items())
        for step, (kind, settings) in zip(steps, wanted, strict=True)
    )


RENAMED = {"lfm2.LFM2VLModel": ("vision_tower.", "vision_tower.vision_model.")}
"""Class of the converter -> how the names that transformers 5 saves begin, and how those begin that it knows."""


def teach_names() -> None:
    """Makes the converter know the tensors of RENAMED."""
    for path, (saved, known) in RENAMED.items():
        module, _, name = path.partition(".")
        kind = getattr(importlib.import_module(f"conversion.{module}"), name)
        filtered = kind.filter_tensors.__func__

        def renamed(cls: Any, item: Any, filtered: Any = filtered, saved: str = saved, known: str = known) -> Any:
            tensor, load = item
            bare = tensor.removeprefix("model.")
            new = bare.startswith(saved) and not bare.startswith(known)
            return filtered(cls, (known + bare.removeprefix(saved) if new else tensor, load))

        kind.filter_tensors = classmethod(renamed)


def teach_pre_tokenizers() -> None:
    """Makes the converter read the pre-tokenizer of a vocabulary that it does not recognise."""
    TextModel = importlib.import_module("conversion.base").TextModel

    recognise = TextModel.get_vocab_base_pre

    def recognise_or_read(self: Any, tokenizer: Any) -> str:
        try:
            return str(recognise(self, tokenizer))
        except NotImplementedError:
            content = json.loads((Path(self.dir_model) / "tokenizer.json").read_text())
            name = pre_tokenizer_name(content.get("pre_tokenizer"))
            if name is None:
                raise
            return name

    TextModel.get_vocab_base_pre = recognise_or_read


def main(home: Path, checkpoint: str, text: str, text_type: str, mmproj: str, mmproj_type: str) -> None:
    """Converts a checkpoint to the pair of files."""
    sys.path[:0] = [str(home), str(home / "gguf-py")]
    teach_pre_tokenizers()
    teach_names()
    # Draft heads for more tokens at once (`mtp.`): transformers drops them, and the converter would still count their layers.
    importlib.import_module("conversion.base").ModelBase.no_mtp = True
    script = str(home / "convert_hf_to_gguf.py")
    for arguments in (
        [checkpoint, "--outfile", text, "--outtype", text_type],
        [checkpoint, "--outfile", mmproj, "--outtype", mmproj_type, "--mmproj"],
    ):
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
