"""Runs the pinned convert_hf_to_gguf.py, and knows one thing that it cannot: tokenizers that are not published.

The converter recognises a pre-tokenizer by a hash over token ids, so every new vocabulary is unknown to it, a trained
one of our own and one that grew by a token alike. What llama.cpp needs is the *pre-tokenizer*, and that is written
plainly in tokenizer.json: where it is SmolLM's, the answer is "smollm"; anything else stays the converter's error.

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

SMOLLM = [("Digits", {"individual_digits": True}), ("ByteLevel", {"add_prefix_space": False, "use_regex": True})]


def is_smollm(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Whether tokenizer.json's `pre_tokenizer` splits text as SmolLM's does: single digits, then GPT-2's regex."""
    if not pre_tokenizer or pre_tokenizer.get("type") != "Sequence":
        return False
    steps = pre_tokenizer.get("pretokenizers", [])
    return len(steps) == len(SMOLLM) and all(
        step.get("type") == kind and all(step.get(key) == value for key, value in settings.items())
        for step, (kind, settings) in zip(steps, SMOLLM, strict=True)
    )


def teach(home: Path) -> None:
    """Makes the converter read the pre-tokenizer of a vocabulary that it does not recognise."""
    TextModel = importlib.import_module("conversion.base").TextModel

    recognise = TextModel.get_vocab_base_pre

    def recognise_or_read(self: Any, tokenizer: Any) -> str:
        try:
            return str(recognise(self, tokenizer))
        except NotImplementedError:
            content = json.loads((Path(self.dir_model) / "tokenizer.json").read_text())
            if is_smollm(content.get("pre_tokenizer")):
                return "smollm"
            raise

    TextModel.get_vocab_base_pre = recognise_or_read


def main(home: Path, checkpoint: str, text: str, text_type: str, mmproj: str, mmproj_type: str) -> None:
    """Converts a checkpoint to the pair of files."""
    sys.path[:0] = [str(home), str(home / "gguf-py")]
    teach(home)
    script = str(home / "convert_hf_to_gguf.py")
    for arguments in (
        [checkpoint, "--outfile", text, "--outtype", text_type],
        [checkpoint, "--outfile", mmproj, "--outtype", mmproj_type, "--mmproj"],
    ):
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
