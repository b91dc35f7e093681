"""What `plan` says of memory, beside the peak of the tensors of a real optimiser step of the tiny student."""

from __future__ import annotations

from typing import Any

import pytest

from bench.memory import measure
from pocketvlm.run_file import Phase, Trainer
from pocketvlm.student.families import FAMILIES
from pocketvlm.student.memory import BITS_BYTES, Pass, choose_passes, estimate, feature_width
from pocketvlm.student.tiny import tiny_config

WITHIN = 0.15
LORA, FULL, VISION = "lora text, kept features", "full connector and text, kept features", "full, vision too"


@pytest.mark.parametrize(
    ("recipe", "precision", "passes"),
    [
        (LORA, "fp32", 1), (LORA, "bf16", 1), (f"{LORA}, activations computed twice", "fp32", 1),
        (FULL, "fp32", 2), (FULL, "bf16", 1), (VISION, "fp32", 1),
    ],
)  # fmt: skip
def test_the_peak_of_a_step_is_within_fifteen_per_cent_of_the_estimate(
    tokenizer: Any, recipe: str, precision: str, passes: int
) -> None:
    found = measure(tiny_config(tokenizer), recipe, batch=2, precision=precision, passes=passes)
    assert found["ratio"] == pytest.approx(1, abs=WITHIN), found


def test_a_base_of_few_bits_keeps_its_head_whole() -> None:
    phase = Phase(method="lora", train=["text"], rank=1)
    shapes = {"model.text_model.embed_tokens.weight": (100, 8), "model.text_model.layers.0.mlp.up_proj.weight": (16, 8),
              "lm_head.weight": (100, 8)}  # fmt: skip

    def weights(bits: Any) -> float:
        settings = Trainer(phases=[phase], base_bits=bits)
        return estimate(FAMILIES["SmolVLMForConditionalGeneration"], shapes, settings, phase, Pass(8, 1, 4, 0), tied_head=False,
                        precision="bf16", held_bytes=0, checkpointing=False).weights  # fmt: skip

    assert weights(16) - weights(4) == pytest.approx((2 - BITS_BYTES[4]) * 16 * 8)


@pytest.mark.parametrize("asked", [None, 4])
def test_a_gpu_leaves_kept_images_on_the_host_before_it_halves_a_pass(asked: int | None) -> None:
    phase = Phase(method="lora", train=["text"], rank=1)
    shapes = {"model.text_model.embed_tokens.weight": (100, 8), "model.text_model.layers.0.mlp.up_proj.weight": (16, 8)}
    settings = Trainer(phases=[phase], batch_size=8, micro_batch_size=asked, gradient_checkpointing=False)

    def chosen(budget: float, **device: bool) -> Any:
        return choose_passes(FAMILIES["SmolVLMForConditionalGeneration"], shapes, settings, phase, Pass(8, 1, 4, 0),
                             tied_head=True, precision="bf16", held_bytes=1000, budget_bytes=budget, **device)  # fmt: skip

    roomy = chosen(1e9)
    everything, size = roomy.gigabytes * 1e9, asked or 8
    assert (roomy.size, roomy.memory.held, roomy.images_on_host) == (size, 1000, False)
    tight = chosen(everything - 1)
    assert (tight.size, tight.memory.held, tight.images_on_host, tight.fits) == (size, 0, True, True)
    assert tight.gigabytes * 1e9 == pytest.approx(everything - 1000) and tight.words.endswith("images in the host's memory")
    tighter = chosen(everything - 1001)
    assert tighter.images_on_host and (tighter.size < size if asked is None else not tighter.fits)
    on_a_cpu = chosen(everything - 1, own_memory=False)
    assert on_a_cpu.memory.held == 1000 and not on_a_cpu.images_on_host


def test_features_are_as_wide_as_what_the_connector_reads_or_what_each_of_its_branches_writes() -> None:
    before, behind = FAMILIES["SmolVLMForConditionalGeneration"], FAMILIES["Qwen3VLForConditionalGeneration"]
    assert feature_width(before, {"model.connector.modality_projection.proj.weight": (8, 48)}) == 48
    branch = {"linear_fc1.weight": (32, 32), "linear_fc2.weight": (8, 32)}
    shapes = {"model.language_model.embed_tokens.weight": (100, 8)} | {
        f"model.visual.{place}.{name}": shape for place in ("merger", "deepstack_merger_list.0") for name, shape in branch.items()
    }
    assert feature_width(behind, shapes) == 2 * 8
