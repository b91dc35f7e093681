"""Faults that the GGUF files of a pair show by themselves, or beside the checkpoint that they were made from."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pocketvlm.doctor.checkpoint import layer_norm_epsilon, longest_edge_px, rope_theta
from pocketvlm.doctor.checkpoint_file import Checkpoint
from pocketvlm.doctor.finding import Finding
from pocketvlm.doctor.template import check_template, check_tokens
from pocketvlm.llamacpp.convert_runner import pre_tokenizer_name
from pocketvlm.llamacpp.gguf_file import Gguf

LEAST_VISION_BITS = 5
MANY_TILES = 17
"""What the default budget of 2048 px makes of every square photo."""
LOST_THETA = 10000.0
"""What llama.cpp and older converters take where the key is missing; no SmolVLM or Idefics3 has it."""
LAYOUT = ("<fake_token_around_image>", "<global-img>", "<row_1_col_1>", "<image>")
"""Tokens that llama.cpp writes around the tiles of an Idefics3 image."""
ALIKE = (
    {"lfm2", "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0"},
    {"qwen2", "deepseek-r1-qwen"},
)  # fmt: skip
"""Pre-tokenizers that llama.cpp has under several names (src/llama-vocab.cpp)."""
K_QUANTS = {
    11: ("Q3_K_S", "Q3_K"), 12: ("Q3_K_M", "Q3_K"), 13: ("Q3_K_L", "Q3_K"), 14: ("Q4_K_S", "Q4_K"), 15: ("Q4_K_M", "Q4_K"),
    16: ("Q5_K_S", "Q5_K"), 17: ("Q5_K_M", "Q5_K"), 18: ("Q6_K", "Q6_K"),
}  # fmt: skip
"""`general.file_type` -> its name, and the tensor type that it promises; rows of all are cut into 256 weights."""


def is_idefics3(text: Gguf | None, mmproj: Gguf | None) -> bool:
    """Whether this is SmolVLM or Idefics3: by the mmproj, else by the text model's vocabulary."""
    if mmproj is not None:
        return mmproj.keys.get("clip.projector_type") == "idefics3"
    return text is not None and LAYOUT[0] in text.tokens()


def check_file(file: Gguf) -> Iterator[Finding]:
    """What concerns any GGUF file."""
    if file.missing_bytes:
        yield Finding("gguf-truncated", "fault", file.path.name, f"ends {file.missing_bytes} bytes before its last tensor does",
                      "llama.cpp refuses to load it", "download or copy it again, and check its sha256")  # fmt: skip


def check_text(text: Gguf, checkpoint: Checkpoint | None, *, idefics3: bool) -> Iterator[Finding]:
    """What concerns the text model alone."""
    name = text.path.name
    tokens = text.tokens()
    if idefics3 and (lacking := [token for token in LAYOUT if token not in tokens]):
        yield Finding("layout-tokens", "fault", f"{name}: tokenizer.ggml.tokens", f"lacks {', '.join(lacking)}",
                      "the marks around the image become ordinary text; the model has never seen such a prompt",
                      "this is the text model of another family; convert the text model of the same checkpoint")  # fmt: skip
    yield from _check_pre_tokenizer(text, checkpoint, tokens, idefics3=idefics3)
    yield from _check_theta(text, checkpoint, idefics3=idefics3)
    yield from _check_fallbacks(text)
    yield from check_tokens(tokens, f"{name}: tokenizer.ggml.tokens")
    template = text.keys.get("tokenizer.chat_template")
    if isinstance(template, str):
        yield from check_template(template, f"{name}: tokenizer.chat_template", idefics3=idefics3)


def _check_pre_tokenizer(text: Gguf, checkpoint: Checkpoint | None, tokens: list[str], *, idefics3: bool) -> Iterator[Finding]:
    key = "tokenizer.ggml.pre"
    found = text.keys.get(key)
    wanted, source = None, "the vocabulary is SmolVLM's"
    if checkpoint is not None and (name := pre_tokenizer_name(checkpoint.pre_tokenizer)):
        wanted, source = name, f"{checkpoint.path.name}/tokenizer.json has the steps"
    elif idefics3 and "<|begin_of_text|>" in tokens:
        wanted, source = "llama-bpe", "the vocabulary is Llama 3's"
    elif idefics3 and "<|im_start|>" in tokens:
        wanted = "smollm"
    if wanted and found != wanted and not any({wanted, str(found)} <= names for names in ALIKE):
        yield Finding("pre-tokenizer", "fault", f"{text.path.name}: {key}", f"is {found or 'missing'}, and {source}: {wanted}",
                      "text is cut into other tokens than in training, numbers first of all; answers degrade without a sign",
                      f"convert again, or set the key to {wanted} with gguf-py's gguf_new_metadata.py")  # fmt: skip


def _check_theta(text: Gguf, checkpoint: Checkpoint | None, *, idefics3: bool) -> Iterator[Finding]:
    written = text.number(f"{text.keys.get('general.architecture')}.rope.freq_base")
    found = LOST_THETA if written is None else written
    trained = None if checkpoint is None else rope_theta(checkpoint)
    if trained is not None and not math.isclose(found, trained, rel_tol=1e-3):
        wrong = f"is {found:g}, and the checkpoint has {trained:g}"
    elif trained is None and idefics3 and math.isclose(found, LOST_THETA):
        wrong = f"is {'missing' if written is None else f'{found:g}'}; no SmolVLM or Idefics3 was trained with {LOST_THETA:g}"
    else:
        return
    yield Finding("rope-theta", "fault", f"{text.path.name}: {text.keys.get('general.architecture')}.rope.freq_base", wrong,
                  "positions are turned at another speed than in training; answers get worse the further from the image they are",
                  "convert again with a converter that reads `rope_parameters`, which transformers 5 writes")  # fmt: skip


def _check_fallbacks(text: Gguf) -> Iterator[Finding]:
    label, promised = K_QUANTS.get(int(text.number("general.file_type") or 0), ("", ""))
    matrices = [tensor for tensor in text.tensors.values() if len(tensor.shape) > 1]
    fallen = sum(tensor.type != promised and tensor.shape[0] % 256 != 0 for tensor in matrices)
    if label and 2 * fallen > len(matrices):
        yield Finding("k-quant-fallback", "warning", f"{text.path.name}: general.file_type",
                      f"says {label}, and {fallen} of {len(matrices)} matrices have rows that are no multiple of 256 and are of "
                      f"another type: {text.bits_per_weight:.1f} bits a weight",
                      "the file is larger and slower than its name says; nothing is wrong with the answers",
                      "take q4_0 or iq4_nl where 4 bits are wanted: their blocks are of 32")  # fmt: skip


def check_mmproj(mmproj: Gguf, checkpoint: Checkpoint | None, *, idefics3: bool) -> Iterator[Finding]:
    """What concerns the vision file alone."""
    name = mmproj.path.name
    if not mmproj.keys.get("clip.has_vision_encoder"):
        yield Finding("no-vision", "fault", f"{name}: clip.has_vision_encoder", "is not set",
                      "llama.cpp refuses images", "convert the checkpoint with --mmproj")  # fmt: skip
    if "clip.vision.image_mean" not in mmproj.keys or "clip.vision.image_std" not in mmproj.keys:
        yield Finding("image-mean", "fault", f"{name}: clip.vision.image_mean", "it or clip.vision.image_std is missing",
                      "llama.cpp refuses the file, or shifts every pixel", "convert again from a folder with "
                      "preprocessor_config.json")  # fmt: skip
    coarse = [tensor for tensor in mmproj.tensors.values() if len(tensor.shape) > 1 and tensor.bits < LEAST_VISION_BITS]
    if coarse:
        kinds = ", ".join(sorted({tensor.type for tensor in coarse}))
        yield Finding("vision-4-bit", "fault", f"{name}: {coarse[0].name}", f"{len(coarse)} vision matrices are {kinds}",
                      "what the model sees is blurred; small text models cannot make up for it",
                      "quantise the mmproj to q8_0, which is small enough, and only the text model further")  # fmt: skip
    if idefics3:
        yield from _check_tiles(mmproj, checkpoint)
        yield from _check_epsilon(mmproj, checkpoint)


def _check_tiles(mmproj: Gguf, checkpoint: Checkpoint | None) -> Iterator[Finding]:
    key = "clip.vision.preproc_image_size"
    where, found = f"{mmproj.path.name}: {key}", mmproj.number(key)
    trained = None if checkpoint is None else longest_edge_px(checkpoint)
    if found is None:
        yield Finding("preproc-image-size", "fault", where, "is missing",
                      "the number of tiles hangs on the build of llama.cpp: 64, 128 or 576 tokens for one photo were seen",
                      "convert again with a llama.cpp of October 2025 or later, from a folder whose preprocessor_config.json "
                      "has size.longest_edge; or set the key with gguf_new_metadata.py")  # fmt: skip
    elif trained is not None and found != trained:
        yield Finding("preproc-image-size", "fault", where, f"is {found}, and the checkpoint has size.longest_edge {trained}",
                      "the phone cuts images into other tiles than training did; that alone costs as much as 4 bits",
                      "write size.longest_edge into preprocessor_config.json and processor_config.json, and convert again")
    tile, patch, scale = (int(mmproj.number(f"clip.vision.{name}") or 0)
                          for name in ("image_size", "patch_size", "projector.scale_factor"))  # fmt: skip
    if found and tile and patch and scale and (tiles := (int(found) // tile) ** 2 + 1) >= MANY_TILES:
        tokens = tiles * (tile // patch) ** 2 // scale**2
        yield Finding("many-tiles", "warning", where,
                      f"is {found}: {tiles} tiles, {tokens} tokens for every square photo, however small it is",
                      "the first word of an answer takes several times as long as with one tile and the overview",
                      f"train and convert with size.longest_edge {tile}, unless fine details decide")  # fmt: skip


def _check_epsilon(mmproj: Gguf, checkpoint: Checkpoint | None) -> Iterator[Finding]:
    key = "clip.vision.attention.layer_norm_epsilon"
    found = mmproj.number(key)
    wanted = (layer_norm_epsilon(checkpoint) if checkpoint else None) or 1e-6
    if found is None or not math.isclose(found, wanted, rel_tol=1e-2):
        yield Finding("layer-norm-eps", "fault", f"{mmproj.path.name}: {key}",
                      f"is {'missing' if found is None else f'{found:.0e}'}, and training had {wanted:.0e}",
                      "every layer of the vision tower is normalised a little otherwise than in training",
                      f"write vision_config.layer_norm_eps: {wanted:.0e} into config.json and convert again")  # fmt: skip


def check_pair(text: Gguf, mmproj: Gguf) -> Iterator[Finding]:
    """What concerns the two together."""
    wide, projected = text.text_key("embedding_length"), mmproj.keys.get("clip.vision.projection_dim")
    names = f"{text.path.name} and {mmproj.path.name}"
    if wide is not None and projected is not None and wide != projected:
        yield Finding("widths", "fault", f"{names}: clip.vision.projection_dim",
                      f"the mmproj makes vectors of {projected}, the text model reads {wide}",
                      "llama.cpp refuses the pair", "take both files from one checkpoint")  # fmt: skip
    elif (first := text.keys.get("general.name")) != (second := mmproj.keys.get("general.name")) and first and second:
        yield Finding("other-name", "note", f"{names}: general.name",
                      f"were converted from folders of two names: {first!r} and {second!r}",
                      "the mmproj may be of another training than the text model",
                      "give the doctor the checkpoint that they were made from: it compares the tensors")  # fmt: skip
