"""Faults of a checkpoint folder: what makes it train wrongly, convert wrongly, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pocketvlm.doctor.checkpoint_file import Checkpoint
from pocketvlm.doctor.finding import Finding
from pocketvlm.doctor.template import check_template, check_tokens
from pocketvlm.student.families import REFUSED

IDEFICS3 = ("SmolVLMForConditionalGeneration", "Idefics3ForConditionalGeneration")
DEFAULT_THETA = 10000.0
EMBEDDINGS, HEAD = "model.text_model.embed_tokens.weight", "lm_head.weight"


def is_idefics3(checkpoint: Checkpoint) -> bool:
    return checkpoint.architecture in IDEFICS3


def longest_edge_px(checkpoint: Checkpoint) -> int | None:
    """`size.longest_edge` as the converter of the pin finds it."""
    size = checkpoint.preprocessor.get("size")
    edge = size.get("longest_edge") if isinstance(size, dict) else None
    return edge if isinstance(edge, int) else None


def rope_theta(checkpoint: Checkpoint) -> float | None:
    """Where transformers 4 and 5 write it."""
    text = checkpoint.block("text_config")
    parameters = text.get("rope_parameters")
    theta = (parameters if isinstance(parameters, dict) else {}).get("rope_theta", text.get("rope_theta"))
    return float(theta) if isinstance(theta, int | float) else None


def layer_norm_epsilon(checkpoint: Checkpoint) -> float | None:
    """Of the vision tower."""
    epsilon = checkpoint.block("vision_config").get("layer_norm_eps")
    return float(epsilon) if isinstance(epsilon, int | float) else None


def check_checkpoint(checkpoint: Checkpoint) -> Iterator[Finding]:
    """All of them."""
    name = checkpoint.architecture
    if name in REFUSED:
        yield Finding("no-gguf-route", "fault", "config.json: architectures", f"is {name}; {REFUSED[name]}",
                      "it runs on no phone with llama.cpp", "train a family that converts, such as SmolVLM2")  # fmt: skip
    if "auto_map" in checkpoint.config:
        yield Finding("remote-code", "fault", "config.json: auto_map", "needs code from the checkpoint to load",
                      "whoever opens it runs that code; PocketVLM and llama.cpp never do", "take a family that transformers has")
    yield from _check_weights(checkpoint)
    if is_idefics3(checkpoint):
        yield from _check_config(checkpoint)
        yield from _check_preprocessor(checkpoint)
        yield from _check_head(checkpoint)
    yield from _check_text_files(checkpoint)


def _check_weights(checkpoint: Checkpoint) -> Iterator[Finding]:
    if not checkpoint.files:
        pickles = checkpoint.pickles()
        wrong = f"there are only pickles ({', '.join(pickles[:3])})" if pickles else "there are no *.safetensors"
        yield Finding("pickles" if pickles else "no-weights", "fault", "*.safetensors", wrong,
                      "a pickle can run any code when it is opened, so none is read" if pickles else "nothing to convert",
                      "save it again with safe_serialization, on a machine where its code may run" if pickles
                      else "fetch the whole checkpoint")  # fmt: skip
    for name in checkpoint.cut:
        yield Finding("safetensors-truncated", "fault", name, "ends before its last tensor does",
                      "neither training nor the converter can read it", "fetch or save it again")  # fmt: skip
    index = checkpoint.read("model.safetensors.index.json").get("weight_map")
    shards = sorted({str(shard) for shard in index.values()}) if isinstance(index, dict) else []
    if gone := [shard for shard in shards if not (checkpoint.path / shard).is_file()]:
        yield Finding("shard-missing", "fault", "model.safetensors.index.json", f"names {', '.join(gone)}, which is not there",
                      "neither training nor the converter can read it", "fetch the whole checkpoint")  # fmt: skip


def _check_config(checkpoint: Checkpoint) -> Iterator[Finding]:
    text = checkpoint.block("text_config")
    if not text.get("architectures"):
        yield Finding("text-architecture", "fault", "config.json: text_config.architectures", "is missing",
                      "the converter refuses the text model (\"Model SmolVLMForConditionalGeneration is not supported\"); some "
                      "tools then ship a text model alone, or the base's", 'write ["VLlama3ForCausalLM"], as published '
                      "checkpoints have it; a save by transformers drops it")  # fmt: skip
    theta = rope_theta(checkpoint)
    if theta is None or theta == DEFAULT_THETA:
        said = "is missing" if theta is None else f"is {theta:g}"
        yield Finding("rope-theta", "fault", "config.json: text_config.rope_parameters.rope_theta",
                      f"{said}; no SmolVLM or Idefics3 was trained with {DEFAULT_THETA:g}, which is what is then taken",
                      "positions are turned at another speed than in the base's training",
                      "write the base's value: 100000 for 256M and 500M")  # fmt: skip
    if layer_norm_epsilon(checkpoint) is None:
        yield Finding("layer-norm-eps", "warning", "config.json: vision_config.layer_norm_eps", "is missing",
                      "transformers takes 1e-6, the converter writes 1e-5: the phone's vision tower is a little another",
                      "write 1e-6")  # fmt: skip


def _check_preprocessor(checkpoint: Checkpoint) -> Iterator[Finding]:
    old, new = checkpoint.read("preprocessor_config.json"), checkpoint.read("processor_config.json").get("image_processor") or {}
    merged = checkpoint.preprocessor
    files = "preprocessor_config.json, processor_config.json"
    if not merged.get("image_mean") or not merged.get("image_std"):
        yield Finding("image-mean", "fault", f"{files}: image_mean", "it or image_std is missing" if merged else "there is none",
                      "the converter makes no mmproj (KeyError: 'image_mean'); some tools then keep the text model alone",
                      "save the image processor too: `image_processor.save_pretrained(folder)`")  # fmt: skip
    if longest_edge_px(checkpoint) is None:
        yield Finding("longest-edge", "fault", f"{files}: size.longest_edge", "is missing",
                      "the converter silently writes one tile, whatever the model was trained with",
                      "write the budget that training had (2048 if you did not change it) into both files")  # fmt: skip
    elif _edge(old) is None:
        yield Finding("longest-edge", "warning", "preprocessor_config.json: size.longest_edge",
                      "is missing there, and stands in processor_config.json alone",
                      "converters of before transformers 5 read only the first file, and silently write one tile",
                      "write it into both; transformers 5 writes the first by `image_processor.save_pretrained`")  # fmt: skip
    elif _edge(new) not in (None, _edge(old)):
        yield Finding("longest-edge", "warning", f"{files}: size.longest_edge", f"are {_edge(old)} and {_edge(new)}",
                      "which one counts hangs on the version of the converter", "write the same into both")  # fmt: skip


def _edge(settings: Any) -> Any:
    size = settings.get("size") if isinstance(settings, dict) else None
    return size.get("longest_edge") if isinstance(size, dict) else None


def _check_head(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Of a family whose embeddings are tied only where its config says so."""
    tied = bool(checkpoint.config.get("tie_word_embeddings", False))
    head, embeddings = checkpoint.weights.get(HEAD), checkpoint.weights.get(EMBEDDINGS)
    if checkpoint.weights and head is None and not tied:
        yield Finding("head-missing", "fault", f"*.safetensors: {HEAD}", "is missing, and config.json does not tie it to the "
                      "embeddings", "transformers makes a random one; llama.cpp takes the embeddings: two models, neither the "
                      "trained one", "save the head, or write tie_word_embeddings: true if it is the embeddings")  # fmt: skip
    elif tied and head is not None and embeddings is not None and not head.equals(embeddings):
        yield Finding("head-diverged", "fault", f"*.safetensors: {HEAD}", "is not the embeddings, to which config.json ties it",
                      "transformers drops one of the two and llama.cpp takes both: they answer differently",
                      "write tie_word_embeddings: false, if both were trained apart")  # fmt: skip


def _check_text_files(checkpoint: Checkpoint) -> Iterator[Finding]:
    tokenizer = checkpoint.read("tokenizer.json")
    if not tokenizer and not (checkpoint.path / "tokenizer.model").is_file():
        yield Finding("no-tokenizer", "fault", "tokenizer.json", "is missing or cannot be read",
                      "the converter makes no text model", "save the tokenizer into the folder")  # fmt: skip
    added = tokenizer.get("added_tokens")
    added = [token for token in added if isinstance(token, dict)] if isinstance(added, list) else []
    yield from check_tokens([str(token.get("content")) for token in added], "tokenizer.json: added_tokens")
    template, file = checkpoint.chat_template()
    if template:
        yield from check_template(template, file, idefics3=is_idefics3(checkpoint))
