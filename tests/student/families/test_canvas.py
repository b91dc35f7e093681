"""What holds of every family with one canvas: a tiny checkpoint of each, against transformers' own code and llama-server."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from canvas_students import FAULT_NATS, OWN, Shipped, Student, every_token, nats, toolchain_of
from PIL import Image, ImageChops

from pocketvlm.llamacpp.audit import check_mmproj, read_keys
from pocketvlm.run_file import Device, Phase
from pocketvlm.student import adapters
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families import FAMILIES, MEDIA, PARTS
from pocketvlm.student.families.canvas import CanvasFamily
from pocketvlm.student.forward import answer_loss
from pocketvlm.student.generation import generate
from pocketvlm.student.processor_files import load_tokenizer
from pocketvlm.student.prompt import pad

BOUNDS = {("f32", "f16"): 0.01, ("bf16", "f16"): 0.03, ("q8_0", "q8_0"): 0.15}
"""Types of text and mmproj -> root mean square over the vocabulary (nats), worst image. With float32 weights only pixels, tokens
and graph are left to differ."""
every_family = pytest.mark.parametrize("student", OWN, indirect=True)


def test_every_family_of_the_table_is_here() -> None:
    assert {family.name for family in FAMILIES.values() if isinstance(family, CanvasFamily)} == set(OWN)


@every_family
def test_forward_in_steps_equals_transformers_own(student: Student) -> None:
    images = student.canvases()
    for image, encoded in zip(images, student.encode(images), strict=True):
        ids = torch.tensor([encoded.prompt_ids])
        with torch.inference_mode():
            theirs = student.model(**student.inputs(image)).logits
            hidden, _ = student.family.prefill(student.model, ids, encoded.features_NTC)
            ours = student.family.logits(student.model, hidden)
        assert (ours - theirs).abs().max() < 1e-4
        assert encoded.features_NTC.shape[1] == encoded.prompt_ids.count(student.encoder.image_id) == student.own.tokens


@every_family
def test_free_answers_equal_transformers_own(student: Student) -> None:
    images = student.canvases()
    written = generate(student.family, student.model, student.encoder, student.encode(images), max_new_tokens=6, batch_size=2)
    for image, answer in zip(images, written, strict=True):
        given = student.inputs(image)
        theirs = student.model.generate(
            **given, max_new_tokens=6, do_sample=False, eos_token_id=student.encoder.end_id, pad_token_id=student.encoder.end_id
        )[0, given["input_ids"].shape[1] :].tolist()
        assert [*answer.ids, *[student.encoder.end_id] * answer.ended] == theirs


@every_family
def test_samples_that_are_filled_up_answer_as_alone(student: Student) -> None:
    """A question may be longer in one sample than in another; each image keeps its own positions."""
    image, other = student.encode(student.canvases(2))
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
    sight = student.eye.look(student.canvases(1)[0])
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
    sight = student.eye.look(student.canvases(1)[0])
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
        assert (student.family.template.bos or "") + ours.replace(MEDIA, student.own.image) == theirs


@every_family
def test_a_canvas_that_llama_cpp_would_resize_is_refused(student: Student) -> None:
    def problems(**device: Any) -> list[str]:
        return list(student.family.device_problems(student.geometry, Device(**device)))

    step, (least, most) = student.geometry.token_px, student.own.sides
    assert not problems(canvas_px=least * step)
    assert not problems(canvas_px=most * step)
    for canvas_px in (None, (least - 1) * step, (most + 1) * step, (least + 1) * step + 1):
        assert [line.split(":")[0] for line in problems(canvas_px=canvas_px)] == ["canvas_px"]
    assert [line.split(":")[0] for line in problems(canvas_px=least * step, longest_edge_px=512)] == ["longest_edge_px"]


# --- llama-server


@pytest.mark.llamacpp
@every_family
def test_llama_server_counts_the_same_tokens(shipped: Shipped) -> None:
    """A token that llama.cpp puts first on its own account is in no text, but in the count."""
    encoder, first = shipped.student.encoder, shipped.student.family.template.bos
    layout = shipped.student.eye.layout((shipped.student.device.canvas_px,) * 2)
    before, after = shipped.texts
    assert [[*([encoder.tokenizer.get_vocab()[first]] if first else []), *before], after] == encoder.text_ids()
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
    reference = every_token(student, student.encode(student.canvases()))
    measured = {pair: nats(said, reference) for pair, said in shipped.said.items()}
    print(student.name, *(f"{text}+{mmproj} {value:.4f}" for (text, mmproj), value in measured.items()))
    assert {pair: value for pair, value in measured.items() if value > BOUNDS[pair]} == {}


@pytest.mark.llamacpp
@every_family
def test_parity_shows_faults(shipped: Shipped) -> None:
    """Another order of colours, an image on its side, one shifted by a token."""
    student, said = shipped.student, shipped.said["f32", "f16"]
    images = student.canvases()
    faults = {
        "colours": [Image.merge("RGB", image.split()[::-1]) for image in images],
        "turned": [image.transpose(Image.Transpose.TRANSPOSE) for image in images],
        "shifted": [ImageChops.offset(image, student.geometry.token_px, 0) for image in images],
    }
    moved = {name: nats(said, every_token(student, student.encode(changed))) for name, changed in faults.items()}
    print(student.name, *(f"{name} {value:.3f}" for name, value in moved.items()))
    assert {name: value for name, value in moved.items() if value < FAULT_NATS} == {}
