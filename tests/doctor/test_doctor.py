"""The doctor on real files: every fault is planted into what the real chain made, and a sound model has none."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import MMPROJ, TEXT, Json, Models, edit_gguf, quantise
from safetensors.torch import load_file, save_file

from pocketvlm.artifacts.files import hash_file
from pocketvlm.artifacts.release import Release
from pocketvlm.doctor.examine import Diagnosis, examine, render, render_json
from pocketvlm.doctor.template import check_prompt
from pocketvlm.environment import read_environment
from pocketvlm.errors import UserError
from pocketvlm.llamacpp.convert_runner import PRE_TOKENIZERS
from pocketvlm.llamacpp.gguf_file import TYPES, NotGguf, read_gguf
from pocketvlm.llamacpp.toolchain import find_toolchain

pytestmark = pytest.mark.llamacpp
PROMPT = "<|im_start|>User:<__media__>Which digit?<end_of_utterance>\nAssistant:"


def names(diagnosis: Diagnosis) -> set[str]:
    return {finding.name for finding in diagnosis.findings}


def trained(models: Models, to: Path, part: str) -> Path:
    """The checkpoint after a step on every tensor of a part."""
    models.copy_checkpoint(to)
    tensors = load_file(to / "model.safetensors")
    for name, tensor in tensors.items():
        if name.startswith(part):
            tensors[name] = tensor * 1.02 + 0.001
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_a_sound_pair_and_a_sound_checkpoint_have_nothing(models: Models, tmp_path: Path) -> None:
    (models.copy_pair(tmp_path / "pair") / "prompt.txt").write_text(PROMPT)
    for path, options in (
        (models.checkpoint, {}), (tmp_path / "pair", {}), ([models.pair / MMPROJ, models.pair / TEXT], {}),
        (models.pair, {"checkpoint": models.checkpoint}), (models.parity, {"checkpoint": models.checkpoint}),
    ):  # fmt: skip
        diagnosis = examine(path, **options)  # type: ignore[arg-type]
        assert diagnosis.findings == [] and diagnosis.exit_code == 0
        assert render(diagnosis).endswith("no known fault")


def test_the_reader_sees_what_that_of_llama_cpp_sees(models: Models) -> None:
    gguf = find_toolchain(read_environment()).gguf()
    for path in (models.pair / TEXT, models.pair / MMPROJ, models.parity / "mmproj-f16.gguf"):
        ours, theirs = read_gguf(path), gguf.GGUFReader(path)
        assert ours.keys == {name: field.contents() for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
        assert {t.name: (t.type, t.start, t.size) for t in ours.tensors.values()} == {
            t.name: (t.tensor_type.name, int(t.data_offset), int(t.n_bytes)) for t in theirs.tensors
        }


def test_the_reader_knows_every_type_of_the_pin_that_a_file_may_have() -> None:
    """Q8_1 and Q8_K are for activations alone."""
    gguf = find_toolchain(read_environment()).gguf()
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert {number: kind for number, kind in theirs.items() if kind[0] not in ("Q8_1", "Q8_K")} == TYPES


def test_a_text_model_without_its_mmproj_is_a_fault(models: Models, tmp_path: Path) -> None:
    models.copy_pair(tmp_path / "pair")
    (tmp_path / "pair" / MMPROJ).unlink()
    for path in (tmp_path / "pair", models.pair / TEXT):
        diagnosis = examine(path)
        assert names(diagnosis) == {"mmproj-missing"} and diagnosis.exit_code == 3


@pytest.mark.parametrize("part", ["model.vision_model", "model.connector"])
def test_the_mmproj_of_the_base_beside_a_model_that_learnt_to_see_otherwise_is_found(
    models: Models, tmp_path: Path, part: str
) -> None:
    merged = trained(models, tmp_path / "merged", part)
    diagnosis = examine(models.pair, checkpoint=merged, base=models.checkpoint)
    assert names(diagnosis) == {"base-mmproj"} and diagnosis.exit_code == 3
    assert names(examine(models.pair, checkpoint=merged)) == {"other-checkpoint"}


def test_text_of_another_checkpoint_is_found(models: Models, tmp_path: Path) -> None:
    merged = trained(models, tmp_path / "merged", "model.text_model.layers.0.self_attn.v_proj")
    diagnosis = examine(models.pair, checkpoint=merged, base=models.parity)
    assert names(diagnosis) == {"other-checkpoint"} and diagnosis.findings[0].where.startswith(TEXT)


def test_without_the_checkpoint_the_doctor_says_that_it_cannot_tell_whose_mmproj_it_is(models: Models) -> None:
    alone = examine(models.pair)
    assert alone.exit_code == 0 and "--checkpoint" in alone.unseen[0] and "not looked at: whether mmproj" in render(alone)


def test_beside_the_base_alone_its_mmproj_is_a_warning(models: Models, tmp_path: Path) -> None:
    pair = models.copy_pair(tmp_path / "pair")

    def learn(data: Any) -> None:
        data += 1

    edit_gguf(pair / TEXT, {}, {"output_norm.weight": learn, "blk.0.attn_v.weight": learn})
    for base in (models.pair, models.parity, models.checkpoint):
        diagnosis = examine(pair, base=base)
        assert names(diagnosis) == {"base-mmproj"} and diagnosis.exit_code == 0
        assert names(examine(models.pair, base=base)) == {"untrained"}


KEYS: list[tuple[str, str, Json]] = [
    ("preproc-image-size", MMPROJ, {"clip.vision.preproc_image_size": None}),
    ("many-tiles", MMPROJ, {"clip.vision.preproc_image_size": 4 * 32}),
    ("layer-norm-eps", MMPROJ, {"clip.vision.attention.layer_norm_epsilon": 1e-5}),
    ("image-mean", MMPROJ, {"clip.vision.image_mean": None}),
    ("no-vision", MMPROJ, {"clip.has_vision_encoder": False}),
    ("widths", MMPROJ, {"clip.vision.projection_dim": 576}),
    ("other-name", MMPROJ, {"general.name": "Base"}),
    ("pre-tokenizer", TEXT, {"tokenizer.ggml.pre": "default"}),
    ("pre-tokenizer", TEXT, {"tokenizer.ggml.pre": None}),
    ("rope-theta", TEXT, {"llama.rope.freq_base": 10000.0}),
    ("rope-theta", TEXT, {"llama.rope.freq_base": None}),
    ("template-space", TEXT, {"tokenizer.chat_template": "{{ 'User: ' }}{% for m in messages %}<image>{% endfor %}"}),
    ("media-marker", TEXT, {"tokenizer.chat_template": "User:<__media__>"}),
]


@pytest.mark.parametrize(("name", "file", "keys"), KEYS, ids=[f"{name}-{next(iter(keys.values()))}" for name, _, keys in KEYS])
def test_a_fault_in_a_key_of_the_pair_is_found_with_and_without_the_checkpoint(
    models: Models, tmp_path: Path, name: str, file: str, keys: Json
) -> None:
    pair = models.copy_pair(tmp_path / "pair")
    edit_gguf(pair / file, keys)
    alone = examine(pair)
    assert names(alone) == {name}
    assert any(file in finding.where and finding.effect and finding.remedy for finding in alone.findings)
    assert alone.exit_code == (0 if name in ("many-tiles", "other-name") else 3)
    assert name in names(examine(pair, checkpoint=models.checkpoint))


def test_another_tile_budget_than_the_checkpoints_is_found_beside_it(models: Models, tmp_path: Path) -> None:
    pair = models.copy_pair(tmp_path / "pair")
    edit_gguf(pair / MMPROJ, {"clip.vision.preproc_image_size": 64})
    assert names(examine(pair)) == set()
    assert names(examine(pair, checkpoint=models.checkpoint)) == {"preproc-image-size"}


def test_a_pre_tokenizer_under_another_of_its_names_is_right(models: Models, tmp_path: Path) -> None:
    """Idefics3 has Llama 3's vocabulary, which is cut as LFM2's is."""
    steps = [{"type": kind, **settings} for kind, settings in PRE_TOKENIZERS["lfm2"]]
    changed = put({"type": "Sequence", "pretokenizers": steps}, "pre_tokenizer")
    checkpoint = models.copy_checkpoint(tmp_path / "student", {"tokenizer.json": changed})
    pair = models.copy_pair(tmp_path / "pair")
    for name, found in (("llama-bpe", set()), ("lfm2", set()), ("qwen2", {"pre-tokenizer"})):
        edit_gguf(pair / TEXT, {"tokenizer.ggml.pre": name})
        assert names(examine(pair, checkpoint=checkpoint)) == found


def test_a_file_of_which_little_can_be_compared_with_the_checkpoint_is_not_called_its_own(models: Models, tmp_path: Path) -> None:
    pair = models.copy_pair(tmp_path / "pair")
    quantise(models.parity / "text-bf16.gguf", pair / TEXT, "q4_0")
    (unseen,) = examine(pair, checkpoint=models.checkpoint).unseen
    assert f"whether all of {TEXT} was made from" in unseen and "cannot be compared" in unseen
    assert examine(models.pair, checkpoint=models.checkpoint).unseen == []


def test_a_vision_file_of_4_bits_is_found(models: Models, tmp_path: Path) -> None:
    pair = models.copy_pair(tmp_path / "pair")
    quantise(models.parity / "mmproj-f16.gguf", pair / MMPROJ, "q4_0")
    assert names(examine(pair)) == {"vision-4-bit"}


def test_a_text_file_of_4_bits_is_none_and_a_k_quant_that_fell_back_is_a_warning(models: Models, tmp_path: Path) -> None:
    pair = models.copy_pair(tmp_path / "pair")
    quantise(models.parity / "text-bf16.gguf", pair / TEXT, "q4_0")
    assert names(examine(pair)) == set()
    quantise(models.parity / "text-bf16.gguf", pair / TEXT, "q4_k_m")
    diagnosis = examine(pair, checkpoint=models.checkpoint)
    assert names(diagnosis) == {"k-quant-fallback"} and diagnosis.exit_code == 0
    assert "says Q4_K_M" in diagnosis.findings[0].wrong and "bits a weight" in diagnosis.findings[0].wrong


@pytest.mark.parametrize("kept", [3, 100, 20_000, -1])
def test_a_file_that_was_cut_anywhere_is_found(models: Models, tmp_path: Path, kept: int) -> None:
    pair = models.copy_pair(tmp_path / "pair")
    for file in (TEXT, MMPROJ):
        (pair / file).write_bytes((pair / file).read_bytes()[:kept])
    diagnosis = examine(pair, checkpoint=models.checkpoint)
    cut = [finding.where for finding in diagnosis.findings if finding.name == "gguf-truncated"]
    assert cut == [MMPROJ, TEXT] or sorted(cut) == sorted([MMPROJ, TEXT])


def test_what_is_no_gguf_at_all_is_said_so(models: Models, tmp_path: Path) -> None:
    pair = models.copy_pair(tmp_path / "pair")
    (pair / TEXT).write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "not-gguf" in names(examine(pair))


def drop(*path: str) -> Callable[[Json], None]:
    def change(content: Json) -> None:
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def put(value: Any, *path: str) -> Callable[[Json], None]:
    def change(content: Json) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


CHECKPOINT: list[tuple[str, int, dict[str, Callable[[Json], None]]]] = [
    ("text-architecture", 3, {"config.json": drop("text_config", "architectures")}),
    ("rope-theta", 3, {"config.json": drop("text_config", "rope_parameters")}),
    ("rope-theta", 3, {"config.json": put(10000.0, "text_config", "rope_parameters", "rope_theta")}),
    ("layer-norm-eps", 0, {"config.json": drop("vision_config", "layer_norm_eps")}),
    ("remote-code", 3, {"config.json": put({"AutoModel": "modeling.Mine"}, "auto_map")}),
    ("no-gguf-route", 3, {"config.json": put(["Phi3VForCausalLM"], "architectures")}),
    ("longest-edge", 3, {"preprocessor_config.json": drop("size"), "processor_config.json": drop("image_processor", "size")}),
    ("longest-edge", 0, {"preprocessor_config.json": drop("size")}),
    ("longest-edge", 0, {"preprocessor_config.json": put(2048, "size", "longest_edge")}),
    ("image-mean", 3, {"preprocessor_config.json": drop("image_mean"),
                       "processor_config.json": drop("image_processor", "image_mean")}),
    ("media-marker", 3, {"tokenizer.json": lambda content: content["added_tokens"].append({"content": "<__media__>"})}),
    ("head-diverged", 3, {"config.json": put(True, "tie_word_embeddings")}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "code", "changes"), CHECKPOINT)
def test_a_fault_of_a_checkpoint_is_found(
    models: Models, tmp_path: Path, name: str, code: int, changes: dict[str, Callable[[Json], None]]
) -> None:
    diagnosis = examine(models.copy_checkpoint(tmp_path / "student", changes))
    assert (names(diagnosis), diagnosis.exit_code) == ({name}, code)


@pytest.mark.parametrize(("name", "files"), [
    ("no-tokenizer", ["tokenizer.json"]), ("no-weights", ["model.safetensors"]),
    ("image-mean longest-edge", ["preprocessor_config.json", "processor_config.json"]),
    ("longest-edge", ["preprocessor_config.json"]),
])  # fmt: skip
def test_a_file_that_a_checkpoint_lacks_is_found(models: Models, tmp_path: Path, name: str, files: list[str]) -> None:
    folder = models.copy_checkpoint(tmp_path / "student")
    for file in files:
        (folder / file).unlink()
    assert names(examine(folder)) == set(name.split())


def test_pickles_a_lost_head_and_cut_weights_are_found(models: Models, tmp_path: Path) -> None:
    folder = models.copy_checkpoint(tmp_path / "student")
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}, weights)
    assert names(examine(folder)) == {"head-missing"}
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "safetensors-truncated" in names(examine(folder))
    weights.rename(folder / "pytorch_model.bin")
    assert names(examine(folder)) == {"pickles"}


def test_a_template_with_the_space_is_found_however_it_is_written(models: Models, tmp_path: Path) -> None:
    folder = models.copy_checkpoint(tmp_path / "student")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("{{ ':' }}", "{{ ': ' }}"))
    diagnosis = examine(folder)
    assert names(diagnosis) == {"template-space"} and "User: <image>'" in render(diagnosis)


@pytest.mark.parametrize(("prompt", "name"), [
    (PROMPT.replace("User:", "User: "), "template-space"), (PROMPT.replace("<__media__>", "<image>"), "prompt-marker"),
    (PROMPT.replace("<end_of_utterance>", ""), "prompt-wrapper"), (PROMPT + "<__media__>", "prompt-marker"),
])  # fmt: skip
def test_a_prompt_that_training_did_not_have_is_found(models: Models, tmp_path: Path, prompt: str, name: str) -> None:
    pair = models.copy_pair(tmp_path / "pair")
    (pair / "prompt.txt").write_text(prompt)
    assert names(examine(pair)) == {name}
    assert list(check_prompt("USER: <__media__>\nASSISTANT:", "prompt.txt", idefics3=False)) == []


def released(models: Models, to: Path, prompt: str) -> Path:
    """The pair as `pull` leaves it, with a second type that was not asked for."""
    models.copy_pair(to)
    (to / "prompt.txt").write_text(prompt)
    files: list[Json] = [
        {**hash_file(to / name, name).model_dump(), "role": role, "type": kind}
        for name, role, kind in ((TEXT, "text_model", "q8_0"), (MMPROJ, "mmproj", "q8_0"), ("prompt.txt", "prompt", None))
    ]
    files.append({"name": "text-q4_0.gguf", "role": "text_model", "type": "q4_0", "size": 1, "sha256": "0" * 64})
    release = Release.model_validate({
        "name": "digits", "version": "1", "run": "digits-0", "family": "SmolVLM", "base": "tiny", "prompt_tokens": 60,
        "classes": ["a", "b"], "sampling": {}, "answer_threshold": 0.5, "llama_cpp": "0" * 40, "files": files,
        "device": {"canvas_px": 32, "longest_edge_px": 32, "max_new_tokens": 8},
        "types": {kind: {"text_model": f"text-{kind}.gguf", "mmproj": MMPROJ, "accuracy": 1.0} for kind in ("q8_0", "q4_0")},
    })  # fmt: skip
    (to / "release.json").write_bytes(release.to_bytes())
    return to


def test_a_pulled_release_is_known_and_its_own_prompt_is_right(models: Models, tmp_path: Path) -> None:
    space = PROMPT.replace("User:", "User: ")
    folder = released(models, tmp_path / "release", space)
    assert examine(folder).findings == []
    (folder / "prompt.txt").write_text(PROMPT)
    assert names(examine(folder)) == {"release"}
    (folder / "prompt.txt").write_text(space + " ")
    assert names(examine(folder)) == {"release", "template-space"}
    (folder / "prompt.txt").unlink()
    assert names(examine(folder)) == {"release"}


def test_a_checkpoint_beside_the_pair_is_compared_without_being_named(models: Models, tmp_path: Path) -> None:
    folder = trained(models, tmp_path / "all", "model.vision_model")
    for file in (TEXT, MMPROJ):
        shutil.copy(models.pair / file, folder / file)
    assert names(examine(folder)) == {"other-checkpoint"}


ODD: list[tuple[str, str, Any]] = [
    ("config.json", "architectures", 1), ("config.json", "architectures", "SmolVLMForConditionalGeneration"),
    ("config.json", "text_config", {"architectures": ["VLlama3ForCausalLM"], "rope_parameters": [1]}),
    ("tokenizer.json", "added_tokens", 1), ("tokenizer.json", "pre_tokenizer", ["x"]),
    ("tokenizer.json", "pre_tokenizer", {"type": "Sequence", "pretokenizers": [1]}),
    ("processor_config.json", "image_processor", 1),
]  # fmt: skip


@pytest.mark.parametrize(("file", "key", "value"), ODD)
def test_values_of_another_type_than_they_should_have_are_no_surprise(
    models: Models, tmp_path: Path, file: str, key: str, value: Any
) -> None:
    folder = models.copy_checkpoint(tmp_path / "student", {file: put(value, key)})
    render(examine(folder))
    render(examine(models.pair, checkpoint=folder))


def test_keys_of_another_type_than_they_should_have_are_no_surprise(models: Models, tmp_path: Path) -> None:
    pair = models.copy_pair(tmp_path / "pair")
    keys = {"rope.freq_base": TEXT, "file_type": TEXT, "preproc_image_size": MMPROJ, "layer_norm_epsilon": MMPROJ}
    for key, file in keys.items():
        data = bytearray((pair / file).read_bytes())
        place = data.index(key.encode()) + len(key)
        data[place : place + 8] = struct.pack("<If", 6, float("inf"))
        (pair / file).write_bytes(data)
        render(examine(pair, checkpoint=models.checkpoint))


def header(shape: tuple[int, ...], alignment: int = 32) -> bytes:
    """A GGUF file with one key and one tensor."""
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    key = text("general.alignment") + struct.pack("<II", 4, alignment)
    tensor = text("t") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + key + tensor + bytes(256)


def test_a_header_that_makes_no_sense_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(header((4, 2)))
    assert read_gguf(path).missing_bytes == 0
    deep = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)
    for data in (header(()), header((4, 0)), header((4, 2), alignment=0), deep + struct.pack("<IQ", 9, 1) * 5000 + bytes(64)):
        path.write_bytes(data)
        with pytest.raises(NotGguf):
            read_gguf(path)
        assert names(examine(path)) == {"not-gguf"}


def test_what_looks_like_a_model_and_cannot_be_opened_is_found(models: Models, tmp_path: Path) -> None:
    pair = models.copy_pair(tmp_path / "pair")
    (pair / "folder.gguf").mkdir()
    assert names(examine(pair)) == set()
    (pair / MMPROJ).unlink()
    (pair / MMPROJ).symlink_to(tmp_path / "gone")
    assert names(examine(pair)) == {"not-gguf", "mmproj-missing"}
    folder = models.copy_checkpoint(tmp_path / "student")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "gone")
    assert names(examine(folder)) == {"no-weights"}


def test_options_that_have_nothing_to_compare_are_refused(models: Models, tmp_path: Path) -> None:
    for options in ({"checkpoint": models.checkpoint}, {"base": models.pair}):
        with pytest.raises(UserError, match="is compared with a GGUF pair, and there is none"):
            examine(models.checkpoint, **options)
    base = models.copy_pair(tmp_path / "base")
    (base / MMPROJ).write_bytes((base / MMPROJ).read_bytes()[:-1000])
    with pytest.raises(UserError, match=f"--base .*{MMPROJ} ends before its last tensor does"):
        examine(models.pair, base=base)
    cut = models.copy_checkpoint(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-100_000])
    assert len(examine(models.pair, checkpoint=cut).unseen) == 2


def test_findings_come_as_json_with_the_exit_code(models: Models) -> None:
    told = json.loads(render_json(examine(models.pair / TEXT)))
    assert told["exit_code"] == 3 and told["findings"][0]["name"] == "mmproj-missing" and told["findings"][0]["remedy"]


def test_a_path_that_holds_no_model_is_for_a_person(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError):
            examine(path)
