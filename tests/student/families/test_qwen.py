"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: a tiny checkpoint of each, against transformers' own forward and llama-server."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import families
import numpy as np
import pytest
import torch
from PIL import Image, ImageChops

from pocketvlm.environment import read_environment
from pocketvlm.errors import UserError
from pocketvlm.llamacpp.audit import check_mmproj, read_keys
from pocketvlm.llamacpp.server import Completion, LlamaServer
from pocketvlm.llamacpp.toolchain import Toolchain, find_toolchain
from pocketvlm.run_file import Device, Phase, Task
from pocketvlm.student import adapters, pixels
from pocketvlm.student.checkpoint import complete_config, load_model, load_tokenizer
from pocketvlm.student.families import MEDIA, PARTS, geometry_of, read_geometry
from pocketvlm.student.families.qwen_vl import image_positions
from pocketvlm.student.forward import answer_loss
from pocketvlm.student.generation import generate, next_tokens
from pocketvlm.student.prompt import PromptEncoder, pad
from pocketvlm.student.scoring import EncodedImage, encode_images

NAMES = ["Qwen2-VL", "Qwen2.5-VL", "Qwen3-VL", "Qwen3.5"]
TOKENS = {"Qwen2-VL": 16, "Qwen2.5-VL": 25, "Qwen3-VL": 16, "Qwen3.5": 16}
"""Visual tokens of the canvases in families.DEVICES."""
BOUNDS = {("f32", "f16"): 0.01, ("bf16", "f16"): 0.03, ("q8_0", "q8_0"): 0.15}
"""Types of text and mmproj -> root mean square over the vocabulary (nats), worst image. With float32 weights only pixels, tokens
and graph are left to differ."""
FAULT_NATS = 0.05
"""What every planted fault moves at least, with float32 weights."""
ANYTHING = "root ::= [a-z ]+\n"
"""A grammar, because the server gives none of an answer that ends at once or begins with half a character."""
ANSWERS = ("zero", "seven", "none of these")


@dataclass(frozen=True)
class Student:
    """A tiny checkpoint, read."""

    name: str
    folder: Path
    device: Device
    geometry: Any
    model: Any
    encoder: PromptEncoder
    eye: Any

    @property
    def family(self) -> Any:
        return self.geometry.family

    def encode(self, images: list[Image.Image]) -> list[EncodedImage]:
        return list(encode_images(self.family, self.model, self.encoder, self.eye, images, batch_size=2))


def canvases(canvas_px: int, count: int = 3) -> list[Image.Image]:
    """Colours in which red is not blue, left not right and above not below."""
    rng = np.random.default_rng(5)
    drawn = [Image.fromarray(rng.integers(0, 256, (5 + 2 * i, 7, 3), dtype=np.uint8)) for i in range(count)]
    return [pixels.letterbox(image.resize((300, 200 + 50 * i)), canvas_px) for i, image in enumerate(drawn)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("qwen")


@pytest.fixture(scope="module")
def student(request: pytest.FixtureRequest, place: Path) -> Student:
    name: str = request.param
    folder = families.build(name, place / name)
    device = Device(**families.DEVICES[name])
    geometry = read_geometry(folder)
    task = Task(question="Which digit is it? 42, isn't it\n\nDigit:", classes=dict.fromkeys(ANSWERS, ""), system="Be brief.")
    encoder = PromptEncoder(load_tokenizer(folder), geometry, task)
    return Student(name, folder, device, geometry, load_model(folder), encoder, geometry.family.eye(geometry, device, folder))


def every_family(function: Any) -> Any:
    return pytest.mark.parametrize("student", NAMES, indirect=True, scope="module")(function)


def inputs(student: Student, image: Image.Image) -> dict[str, torch.Tensor]:
    """What transformers' own forward wants for one image."""
    sight = student.eye.look(image)
    ids_BS = torch.tensor([student.encoder.prompt(sight.layout)])
    side = math.isqrt(sight.tiles.shape[1])
    return {
        "input_ids": ids_BS, "pixel_values": torch.from_numpy(sight.tiles[0]), "image_grid_thw": torch.tensor([[1, side, side]]),
        "mm_token_type_ids": (ids_BS == student.encoder.image_id).int(), "attention_mask": torch.ones_like(ids_BS),
    }  # fmt: skip


@every_family
def test_forward_in_steps_equals_transformers_own(student: Student) -> None:
    images = canvases(student.device.canvas_px)
    for image, encoded in zip(images, student.encode(images), strict=True):
        ids = torch.tensor([encoded.prompt_ids])
        with torch.inference_mode():
            theirs = student.model(**inputs(student, image)).logits
            hidden, _ = student.family.prefill(student.model, ids, encoded.features_NTC)
            ours = student.family.logits(student.model, hidden)
        assert (ours - theirs).abs().max() < 1e-4
        assert encoded.features_NTC.shape[1] == encoded.prompt_ids.count(student.encoder.image_id) == TOKENS[student.name]


@every_family
def test_free_answers_equal_transformers_own(student: Student) -> None:
    images = canvases(student.device.canvas_px)
    written = generate(student.family, student.model, student.encoder, student.encode(images), max_new_tokens=6, batch_size=2)
    for image, answer in zip(images, written, strict=True):
        given = inputs(student, image)
        student.model.model.rope_deltas = None
        theirs = student.model.generate(
            **given, max_new_tokens=6, do_sample=False, eos_token_id=student.encoder.end_id, pad_token_id=student.encoder.end_id
        )[0, given["input_ids"].shape[1] :].tolist()
        assert [*answer.ids, *[student.encoder.end_id] * answer.ended] == theirs


@every_family
def test_samples_that_are_filled_up_answer_as_alone(student: Student) -> None:
    """A question may be longer in one sample than in another; each image keeps its own positions."""
    image, other = student.encode(canvases(student.device.canvas_px, 2))
    layout = student.eye.layout((student.device.canvas_px,) * 2)
    samples = [student.encoder.sample(layout, "zero"), student.encoder.sample(layout, "none of these", "What else is there?")]
    ids_BS, labels_BS = map(torch.tensor, pad(samples, student.encoder.end_id))
    with torch.inference_mode():
        features = torch.cat([image.features_NTC, other.features_NTC])
        hidden, _ = student.family.prefill(student.model, ids_BS, features)
        together, count = answer_loss(student.family, student.model, hidden, labels_BS)
        alone = 0.0
        for sample, features_NTC in zip(samples, (image.features_NTC, other.features_NTC), strict=True):
            hidden, _ = student.family.prefill(student.model, torch.tensor([sample.ids]), features_NTC)
            alone += float(answer_loss(student.family, student.model, hidden, torch.tensor([sample.labels]))[0])
    assert float(together) == pytest.approx(alone, rel=1e-4)
    assert count == sum(label >= 0 for sample in samples for label in sample.labels)


@every_family
def test_every_tensor_belongs_to_a_part_on_disk_and_in_memory(student: Student) -> None:
    from safetensors import safe_open

    with safe_open(student.folder / "model.safetensors", "numpy") as tensors:
        on_disk = {name: student.family.part_of(name) for name in tensors.keys()}  # noqa: SIM118 (not a dict)
    assert set(on_disk.values()) == set(PARTS)
    assert all(student.family.part_of(name) in PARTS for name in student.model.state_dict())
    head, embeddings = student.model.get_output_embeddings().weight, student.model.get_input_embeddings().weight
    assert student.geometry.tied_head == (head is embeddings) == ("lm_head.weight" not in on_disk)


@every_family
@pytest.mark.parametrize("part", PARTS)
def test_only_the_trained_part_learns_and_all_of_it(student: Student, part: str) -> None:
    model = load_model(student.folder)
    adapters.train_parts(model, student.family, [part])  # type: ignore[list-item]
    sight = student.eye.look(canvases(student.device.canvas_px, 1)[0])
    sample = student.encoder.sample(sight.layout, "seven")
    features = student.family.features(model, torch.from_numpy(sight.tiles))
    hidden, _ = student.family.prefill(model, torch.tensor([sample.ids]), features)
    answer_loss(student.family, model, hidden, torch.tensor([sample.labels]))[0].backward()
    grown = {name for name, tensor in model.named_parameters() if tensor.grad is not None and bool(tensor.grad.abs().max() > 0)}
    assert grown == {name for name, _ in model.named_parameters() if student.family.part_of(name) == part}


@every_family
def test_adapters_go_on_every_part_and_learn(student: Student) -> None:
    model = load_model(student.folder)
    phase = Phase(method="lora", train=list(PARTS), epochs=1, learning_rate=1e-3, rank=4, alpha=8)
    targets = adapters.resolve_targets(model, student.family, phase)
    assert {student.family.part_of(f"{path}.weight") for path in targets} == set(PARTS)
    adapters.inject(model, targets, rank=4, alpha=8, dropout=0.0)
    sight = student.eye.look(canvases(student.device.canvas_px, 1)[0])
    sample = student.encoder.sample(sight.layout, "seven")
    hidden, _ = student.family.prefill(
        model, torch.tensor([sample.ids]), student.family.features(model, torch.from_numpy(sight.tiles))
    )
    answer_loss(student.family, model, hidden, torch.tensor([sample.labels]))[0].backward()
    learns = [name for name, tensor in model.named_parameters() if tensor.grad is not None and bool(tensor.grad.abs().max() > 0)]
    assert len(learns) == len(targets)  # B of each; A gets its gradient through B, which is zero yet


@every_family
def test_prompt_is_the_one_of_the_chat_template(student: Student) -> None:
    template = load_tokenizer(student.folder)
    for system in (None, "Be brief."):
        turns: list[dict[str, Any]] = [] if system is None else [{"role": "system", "content": system}]
        turns.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]})
        theirs = template.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ours = student.family.template.prompt("What is it?", system=system)
        assert ours.replace(MEDIA, "<|vision_start|><|image_pad|><|vision_end|>") == theirs


def test_positions_count_the_image_by_its_side() -> None:
    """Two words, 2x2 image tokens, two words; and one word before the image in the second sample."""
    image_BS = torch.tensor([[0, 0, 1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0, 0, 0]]).bool()
    time, height, width = image_positions(image_BS, 4).tolist()
    assert time == [[0, 1, 2, 2, 2, 2, 4, 5], [0, 1, 1, 1, 1, 3, 4, 5]]
    assert height == [[0, 1, 2, 2, 3, 3, 4, 5], [0, 1, 1, 2, 2, 3, 4, 5]]
    assert width == [[0, 1, 2, 3, 2, 3, 4, 5], [0, 1, 2, 1, 2, 3, 4, 5]]


@every_family
def test_a_canvas_that_llama_cpp_would_resize_is_refused(student: Student) -> None:
    def problems(**device: Any) -> list[str]:
        return list(student.family.device_problems(student.geometry, Device(**device)))

    step = student.geometry.token_px
    assert not problems(canvas_px=3 * step)
    assert not problems(canvas_px=64 * step)
    for canvas_px in (None, 2 * step, 65 * step, 4 * step + 1):
        assert [line.split(":")[0] for line in problems(canvas_px=canvas_px)] == ["canvas_px"]
    assert [line.split(":")[0] for line in problems(canvas_px=3 * step, longest_edge_px=512)] == ["longest_edge_px"]
    with pytest.raises(ValueError, match="is no canvas of"):
        student.eye.layout((step, 2 * step))


@every_family
def test_a_number_that_llama_cpp_does_not_read_is_refused(student: Student) -> None:
    config = json.loads((student.folder / "config.json").read_text())
    config["vision_config"]["spatial_merge_size"] = 4
    with pytest.raises(UserError, match=r"spatial_merge_size is 4, and llama\.cpp takes 2"):
        geometry_of(config, "config.json")


# --- llama-server

toolchain_of = cache(lambda: find_toolchain(read_environment()))


@dataclass(frozen=True)
class Shipped:
    """The pairs of a merged student, and what llama-server says to each canvas."""

    student: Student
    mmproj: Path
    texts: list[list[int]]
    said: dict[tuple[str, str], list[Completion]]


def export(toolchain: Toolchain, student: Student, folder: Path) -> dict[str, Path]:
    """As merger and quantiser do: saved by transformers, completed, converted, quantised."""
    load_model(student.folder, dtype=torch.bfloat16).save_pretrained(folder)
    complete_config(folder)
    student.family.save_processor(folder, student.folder, student.geometry, student.device)
    text, mmproj = folder / "text-bf16.gguf", folder / "mmproj-f16.gguf"
    toolchain.convert(folder, text=text, text_type="bf16", mmproj=mmproj, mmproj_type="f16")
    for source, kind in ((text, "f32"), (text, "q8_0"), (mmproj, "q8_0")):
        name = f"{source.name.partition('-')[0]}-{kind}.gguf"
        toolchain.run("llama-quantize", ["--allow-requantize", str(source), str(folder / name), kind, "1"])
    return {path.stem: path for path in folder.glob("*.gguf")}


@pytest.fixture(scope="module")
def shipped(student: Student, place: Path) -> Shipped:
    toolchain = toolchain_of()
    files = export(toolchain, student, place / f"{student.name}-merged")
    said: dict[tuple[str, str], list[Completion]] = {}
    for pair in BOUNDS:
        text, mmproj = files[f"text-{pair[0]}"], files[f"mmproj-{pair[1]}"]
        with LlamaServer(toolchain, text, mmproj, media_marker=MEDIA, threads=1) as server:
            said[pair] = [ask(server, student, image) for image in canvases(student.device.canvas_px)]
            texts = [server.tokenize(part) for part in student.encoder.shipped.split(MEDIA)]
    return Shipped(student, files["mmproj-f16"], texts, said)


def ask(server: LlamaServer, student: Student, image: Image.Image) -> Completion:
    """The whole vocabulary after the prompt."""
    file = io.BytesIO()
    image.save(file, "PNG")
    top = student.model.config.text_config.vocab_size
    return server.complete(student.encoder.shipped, file.getvalue(), grammar=ANYTHING, max_new_tokens=1, top=top)


def nats(device: list[Completion], reference: list[dict[int, float]]) -> float:
    """Root mean square over the vocabulary, of the worst image."""
    worst = 0.0
    for said, values in zip(device, reference, strict=True):
        gaps = [value - values[token] for token, value in said.steps[0].logprobs.items()]
        worst = max(worst, math.sqrt(sum(gap * gap for gap in gaps) / len(gaps)))
    return worst


def every_token(student: Student, images: list[EncodedImage]) -> list[dict[int, float]]:
    """Log-probabilities of what may follow the prompt."""
    return next_tokens(student.family, student.model, student.encoder, images, after="", least_nats=-math.inf)


@pytest.mark.llamacpp
@every_family
def test_llama_server_counts_the_same_tokens(shipped: Shipped) -> None:
    encoder = shipped.student.encoder
    layout = shipped.student.eye.layout((shipped.student.device.canvas_px,) * 2)
    assert shipped.texts == encoder.text_ids()
    assert {said.prompt_tokens for answers in shipped.said.values() for said in answers} == {len(encoder.prompt(layout))}


@pytest.mark.llamacpp
@every_family
def test_the_vision_file_holds_what_the_audit_looks_for(shipped: Shipped) -> None:
    check_mmproj(
        read_keys(toolchain_of(), shipped.mmproj),
        shipped.student.family.mmproj_keys(shipped.student.geometry, shipped.student.device),
    )


@pytest.mark.llamacpp
@every_family
def test_parity_with_llama_server(shipped: Shipped) -> None:
    student = shipped.student
    reference = every_token(student, student.encode(canvases(student.device.canvas_px)))
    measured = {pair: nats(said, reference) for pair, said in shipped.said.items()}
    print(student.name, *(f"{text}+{mmproj} {value:.4f}" for (text, mmproj), value in measured.items()))
    assert {pair: value for pair, value in measured.items() if value > BOUNDS[pair]} == {}


@pytest.mark.llamacpp
@every_family
def test_parity_shows_faults(shipped: Shipped) -> None:
    """Another order of colours, an image on its side, one shifted by a token, the positions of text for the image."""
    student, said = shipped.student, shipped.said["f32", "f16"]
    images = canvases(student.device.canvas_px)
    faults = {
        "colours": [Image.merge("RGB", image.split()[::-1]) for image in images],
        "turned": [image.transpose(Image.Transpose.TRANSPOSE) for image in images],
        "shifted": [ImageChops.offset(image, student.geometry.token_px, 0) for image in images],
    }
    moved = {name: nats(said, every_token(student, student.encode(changed))) for name, changed in faults.items()}
    moved["positions"] = nats(said, [flat_positions(student, image) for image in images])
    print(student.name, *(f"{name} {value:.3f}" for name, value in moved.items()))
    assert {name: value for name, value in moved.items() if value < FAULT_NATS} == {}


def flat_positions(student: Student, image: Image.Image) -> dict[int, float]:
    """transformers' own forward with the image's tokens counted on as text is."""
    given = inputs(student, image)
    length = given["input_ids"].shape[1]
    with torch.inference_mode():
        logits = student.model(**given, position_ids=torch.arange(length).expand(3, 1, length)).logits
    return dict(enumerate(torch.log_softmax(logits[0, -1], dim=-1).tolist()))


@pytest.mark.llamacpp
@pytest.mark.parametrize("student", ["Qwen3-VL"], indirect=True, scope="module")
def test_features_for_the_first_text_layers_are_not_lost(shipped: Shipped) -> None:
    student = shipped.student
    width = student.model.config.text_config.hidden_size
    images = [
        replace(image, features_NTC=image.features_NTC[..., :width])
        for image in student.encode(canvases(student.device.canvas_px))
    ]
    assert nats(shipped.said["f32", "f16"], every_token(student, images)) > FAULT_NATS
