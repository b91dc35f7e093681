"""The real programs of the pinned build on the tiny student."""

from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketvlm.environment import Environment, read_environment
from pocketvlm.errors import DataError, ToolError, UserError
from pocketvlm.llamacpp.audit import audit, check_mmproj, read_keys
from pocketvlm.llamacpp.build import read_pin
from pocketvlm.llamacpp.convert_runner import PRE_TOKENIZERS, pre_tokenizer_name
from pocketvlm.llamacpp.server import LlamaServer
from pocketvlm.llamacpp.toolchain import Toolchain, find_toolchain
from pocketvlm.run_file import Device
from pocketvlm.student.families import MEDIA, read_geometry
from pocketvlm.student.tiny import build_tiny

pytestmark = pytest.mark.llamacpp

OTHERWISE = {"individual_digits": False, "pattern": {"Regex": "."}}
"""One of these makes a first step another one."""
PROMPT = f"<|im_start|>User:{MEDIA}Which digit?<end_of_utterance>\nAssistant:"


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return find_toolchain(read_environment())


@pytest.fixture(scope="module")
def pair(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = build_tiny(tmp_path_factory.mktemp("pair") / "tiny", seed=0, longest_edge_px=64)
    text, mmproj = folder / "text-bf16.gguf", folder / "mmproj-f16.gguf"
    toolchain.convert(folder, text=text, text_type="bf16", mmproj=mmproj, mmproj_type="f16")
    return text, mmproj


def png(width: int = 40, height: int = 40) -> bytes:
    values = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


def test_vision_file_carries_the_tile_budget(toolchain: Toolchain, pair: tuple[Path, Path]) -> None:
    keys = read_keys(toolchain, pair[1])
    geometry = read_geometry(pair[0].parent)
    check_mmproj(keys, geometry.family.mmproj_keys(geometry, Device(longest_edge_px=64)))
    with pytest.raises(DataError, match="preproc_image_size is 64, not 512"):
        check_mmproj(keys, geometry.family.mmproj_keys(geometry, Device(longest_edge_px=512)))


def test_audit_counts_the_fallbacks_of_a_k_quant(toolchain: Toolchain, pair: tuple[Path, Path], tmp_path: Path) -> None:
    quantised = tmp_path / "text-q4_k_m.gguf"
    toolchain.run("llama-quantize", [str(pair[0]), str(quantised), "q4_k_m", "1"])
    row = audit(toolchain, quantised, role="text", kind="q4_k_m")
    assert row["fallbacks"] == row["matrices"] > 0
    assert row["bits_per_weight"] > 5
    assert row["size_mb"] == pytest.approx(quantised.stat().st_size / 1e6, abs=0.001)


def test_server_answers_inside_the_grammar_and_counts_its_tokens(toolchain: Toolchain, pair: tuple[Path, Path]) -> None:
    with LlamaServer(toolchain, *pair, media_marker=MEDIA, threads=1) as server:
        done = server.complete(PROMPT, png(), grammar='root ::= " yes" | " no"\n', max_new_tokens=8, top=5)
        assert done.text in (" yes", " no")
        assert len(done.steps[0].logprobs) == 5
        assert done.prompt_tokens > len(server.tokenize(PROMPT.replace(MEDIA, "")))
        assert done.stopped == "eos"


def test_same_question_twice_gives_the_same_log_probabilities(toolchain: Toolchain, pair: tuple[Path, Path]) -> None:
    with LlamaServer(toolchain, *pair, media_marker=MEDIA, threads=1) as server:
        first, second = (server.complete(PROMPT, png(), grammar=None, max_new_tokens=3, top=8) for _ in range(2))
    assert first.steps == second.steps


def test_a_pause_between_two_questions_is_longer_than_the_server_keeps_a_connection(
    toolchain: Toolchain, pair: tuple[Path, Path]
) -> None:
    with LlamaServer(toolchain, *pair, media_marker=MEDIA, threads=1) as server:
        before = server.tokenize("water")
        time.sleep(6)
        assert server.tokenize("water") == before


def test_a_server_that_cannot_start_says_why(toolchain: Toolchain, pair: tuple[Path, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUFnot really")
    server = LlamaServer(toolchain, broken, pair[1], media_marker=MEDIA)
    with pytest.raises(ToolError, match="did not start; its last lines"), server:
        pass


def test_a_request_that_is_refused_names_the_path(toolchain: Toolchain, pair: tuple[Path, Path]) -> None:
    with LlamaServer(toolchain, *pair, media_marker=MEDIA, threads=1) as server, pytest.raises(ToolError, match="/completion"):
        server.complete(PROMPT, b"no image", grammar=None, max_new_tokens=1)


def test_converter_failure_shows_its_last_lines(toolchain: Toolchain, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Nobody"]}))
    with pytest.raises(ToolError, match="Nobody"):
        toolchain.convert(tmp_path, text=tmp_path / "a", text_type="bf16", mmproj=tmp_path / "b", mmproj_type="f16")


def test_a_build_of_another_commit_is_not_used(toolchain: Toolchain, tmp_path: Path) -> None:
    shutil.copy(toolchain.home / "build.json", tmp_path / "build.json")
    assert find_toolchain(Environment(llama_cpp_home=tmp_path)).commit == read_pin().commit
    (tmp_path / "build.json").write_text(json.dumps({"commit": "0" * 40}))
    with pytest.raises(UserError, match="make llama-cpp"):
        find_toolchain(Environment(llama_cpp_home=tmp_path))


def test_pre_tokenizers_are_recognised_by_their_steps() -> None:
    for name, steps in PRE_TOKENIZERS.items():
        written = [{"type": kind, "trim_offsets": True, **settings} for kind, settings in steps]
        assert pre_tokenizer_name({"type": "Sequence", "pretokenizers": written}) == name
        assert pre_tokenizer_name({"type": "Sequence", "pretokenizers": written[:-1]}) is None
        assert pre_tokenizer_name({"type": "Sequence", "pretokenizers": [{**written[0], **OTHERWISE}, *written[1:]]}) is None
    assert pre_tokenizer_name({"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}) is None
    assert pre_tokenizer_name(None) is None
