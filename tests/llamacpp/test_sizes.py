"""Estimated sizes against files that were measured (facts/speed.md and facts/llama-cpp-and-smolvlm.md)."""

from __future__ import annotations

import pytest

from pocketvlm.llamacpp.sizes import estimate_mb, unfit


def text_shapes(*, width: int, mlp: int, layers: int, kv_width: int, vocabulary: int = 49280) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.text_model.embed_tokens.weight": (vocabulary, width), "lm_head.weight": (vocabulary, width),
        "model.text_model.norm.weight": (width,),
    }  # fmt: skip
    for i in range(layers):
        root = f"model.text_model.layers.{i}"
        for name, shape in {
            "self_attn.q_proj": (width, width), "self_attn.k_proj": (kv_width, width), "self_attn.v_proj": (kv_width, width),
            "self_attn.o_proj": (width, width), "mlp.gate_proj": (mlp, width), "mlp.up_proj": (mlp, width),
            "mlp.down_proj": (width, mlp), "input_layernorm": (width,), "post_attention_layernorm": (width,),
        }.items():  # fmt: skip
            shapes[f"{root}.{name}.weight"] = shape
    return shapes


@pytest.mark.parametrize(("kind", "measured_mb"), [("q8_0", 436.3), ("q4_k_m", 302.7), ("q4_0", 254.0), ("iq4_nl", 254.8)])
def test_sizes_of_the_500m_text_model_are_within_three_percent(kind: str, measured_mb: float) -> None:
    shapes = text_shapes(width=960, mlp=2560, layers=32, kv_width=320)
    assert estimate_mb(shapes, kind) == pytest.approx(measured_mb, rel=0.03)


def test_rows_that_no_block_fits_are_counted() -> None:
    assert unfit([(8, 33), (8, 64), (33,)], "q4_0") == 1
    assert unfit([(8, 33)], "f16") == 0


def test_kernels_of_short_convolutions_stay_float32_and_need_no_block() -> None:
    kernels = {"model.language_model.layers.0.conv.conv.weight": (1000, 1, 3)}
    assert unfit(kernels.values(), "q8_0") == 0
    assert estimate_mb(kernels, "q8_0") == pytest.approx(0.012)
