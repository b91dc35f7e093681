"""The model of a checkpoint folder in Hugging Face layout, and its config as llama.cpp's converter needs it.

The converter refuses a text model unless `text_config.architectures` names it, and transformers drops that key when it saves.
"""

from __future__ import annotations

import importlib.util
import json
from logging import ERROR, getLogger
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import logging

from pocketvlm.errors import UserError
from pocketvlm.student.families import HEAD, read_geometry
from pocketvlm.student.processor_files import write_json

WHOLE = (HEAD, ".*patch_embedding", ".*multi_modal_projector")
"""Linear layers that no base of few bits has in few bits: the head is small beside the layers, and its logits decide the answer;
SigLIP 2 makes pixels of the number type of its first layer, which must not be bytes; LFM2-VL's projector is fed tensors of four
dimensions, which 8 bits do not take."""


def quiet() -> None:
    """Progress is told by us; the bars of transformers would stand between our lines."""
    logging.disable_progress_bar()


def load_model(folder: Path, *, dtype: torch.dtype = torch.float32, bits: int = 16) -> PreTrainedModel:
    """The model of a checkpoint folder, in eval mode. Only safetensors are read and no code of the checkpoint is run.

    With 8 or 4 `bits` (see `check_bits`), its linear layers are held in so many, and the model is on the GPU. Raises UserError
    when the weights are not all that the model has: transformers would draw the others at random, other ones in each process.
    """
    quiet()
    read_geometry(folder)
    more: dict[str, Any] = {}
    if bits != 16:
        # It warns of fp16 in 8 bits at every layer of every pass.
        getLogger("bitsandbytes.autograd._functions").setLevel(ERROR)
        kind: dict[str, Any] = {"load_in_8bit": True} if bits == 8 else {
            "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.bfloat16,
        }  # fmt: skip
        more = {"quantization_config": BitsAndBytesConfig(**kind, llm_int8_skip_modules=list(WHOLE)),
                "device_map": {"": torch.cuda.current_device()}}  # fmt: skip
    model, loaded = AutoModelForImageTextToText.from_pretrained(
        folder,
        output_loading_info=True,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        attn_implementation="sdpa",
        **more,
    )
    if missing := sorted(loaded["missing_keys"]):
        raise UserError(f"{folder}: {len(missing)} of its model's tensors are missing, for example {missing[0]}; fetch or save "
                        "the whole checkpoint")  # fmt: skip
    result: PreTrainedModel = model.eval()
    return result


def check_bits(bits: int, device: torch.device) -> None:
    """Raises UserError where bitsandbytes cannot hold a base in 8 or 4 bits."""
    if bits == 16:
        return
    if device.type != "cuda":
        raise UserError(f"run.trainer.base_bits: {bits} bits are made by kernels for CUDA, and this process runs on "
                        f"{device.type}; use 16, or a GPU")  # fmt: skip
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"run.trainer.base_bits: {bits} bits need the package bitsandbytes; install it, or use 16")


def complete_config(folder: Path) -> None:
    """Puts back into config.json what the converter needs and a save by transformers may have dropped."""
    path = folder / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    wanted = read_geometry(folder).family.text_architecture
    if wanted is not None:
        config["text_config"]["architectures"] = [wanted]
        write_json(path, config)
