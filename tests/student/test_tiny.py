"""The tiny student and its checkpoint folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pocketvlm.errors import UserError
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import read_geometry
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.tiny import build_tiny


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_equal_seeds_give_equal_files(tiny: Path, tmp_path: Path) -> None:
    assert digests(build_tiny(tmp_path, seed=0, longest_edge_px=32)) == digests(tiny)


def test_another_seed_gives_other_weights(tiny: Path, tmp_path: Path) -> None:
    other = digests(build_tiny(tmp_path, seed=1, longest_edge_px=32))
    assert {name for name, digest in digests(tiny).items() if other[name] != digest} == {"model.safetensors"}


def test_it_has_one_to_three_million_weights(model: Any) -> None:
    assert 1e6 < sum(parameter.numel() for parameter in model.parameters()) < 3e6


def test_both_processor_files_say_the_tile_budget(tmp_path: Path) -> None:
    folder = build_tiny(tmp_path, seed=0, longest_edge_px=64)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text())
    processor = json.loads((folder / "processor_config.json").read_text())
    assert preprocessor["size"] == processor["image_processor"]["size"] == {"longest_edge": 64}


def test_every_tensor_belongs_to_one_part(tiny: Path, model: Any) -> None:
    family = read_geometry(tiny).family
    assert {family.part_of(name) for name in model.state_dict()} == {"vision", "connector", "text"}


def test_code_from_a_checkpoint_is_never_run(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.py"}}))
    with pytest.raises(UserError, match="auto_map"):
        read_geometry(tmp_path)


def test_an_unknown_family_is_refused_with_those_that_are_known(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["NewVLForCausalLM"]}))
    with pytest.raises(UserError, match=r"NewVLForCausalLM is not available.*SmolVLMForConditionalGeneration"):
        read_geometry(tmp_path)


@pytest.mark.parametrize(("config", "message"), [
    ([], "no JSON object"), ({"architectures": "SmolVLMForConditionalGeneration"}, "the family none is not available"),
    ({"architectures": ["SmolVLMForConditionalGeneration"]}, "has no vision_config"),
])  # fmt: skip
def test_a_config_that_is_none_of_a_family_is_refused(tmp_path: Path, config: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_geometry(tmp_path)


def test_a_checkpoint_that_lacks_a_tensor_is_refused_for_its_place_would_be_random(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.connector.modality_projection.proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 of its model's tensors are missing, for example model\.connector\.modality"):
        load_model(folder)


@pytest.mark.parametrize("content", [None, "{}", "{"])
def test_a_tokenizer_that_cannot_be_read_is_for_a_person(tiny: Path, tmp_path: Path, content: str | None) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="has no tokenizer that can be read"):
        load_tokenizer(folder)


def test_a_family_of_which_no_gguf_can_be_made_is_refused_with_the_reason(tiny: Path, tmp_path: Path) -> None:
    config = json.loads((tiny / "config.json").read_text())
    config |= {"architectures": ["Phi3VForCausalLM"], "auto_map": {"AutoModel": "x"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"Phi3VForCausalLM cannot be trained here: .* no GGUF of it can be made"):
        read_geometry(tmp_path)
