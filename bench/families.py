"""What the pinned llama.cpp makes of each family: tokens, parity and sizes, beside what the last pin made of them.

    python -m bench.families             measure the build of llamacpp/pin.toml, and say what differs from the record
    python -m bench.families --write     the same, and make it the record: docs/families.json, of which docs/families.md is made

So a new pin is a change of pin.toml and one command. A family of which no pair can be made any more, or of whose prompt
llama-server counts other tokens than the student, is said with the others; the command then ends with 1 and writes nothing. The
checkpoints are those of tests/fixtures/families.py: the real
architectures with small numbers and random weights, in which every part moves the answer by nats.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pocketvlm.environment import calm_idle_threads, read_environment
from pocketvlm.errors import ToolError
from pocketvlm.llamacpp.build import read_pin
from pocketvlm.llamacpp.server import LlamaServer
from pocketvlm.llamacpp.toolchain import Toolchain, find_toolchain
from pocketvlm.run_file import Device, Task
from pocketvlm.student.families import MEDIA, read_geometry

HERE = Path(__file__).parents[1]
sys.path.insert(0, str(HERE / "tests" / "fixtures"))
RECORD = HERE / "docs" / "families.json"
PRINTABLE = "root ::= [ -~]+"
"""The server gives no log-probabilities of a token that is part of a character, which untrained weights like to answer."""
IMAGES = 6
SHOWN = {
    "prompt_tokens": "prompt tokens", "image_tokens": "image tokens", "layout_nats": "parity in nats", "text_mb": "text MB",
    "mmproj_mb": "mmproj MB",
}  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """One family at one canvas."""

    canvas_px: int
    device_exact: bool
    image_tokens: int
    prompt_tokens: int
    """As llama-server counts them; equal to ours, or the measurement ends with an error."""
    layout_nats: float
    """Root mean square over the tokens of at least e^-10, float32 text weights; of the worst image."""
    text_mb: float
    """bf16; 10^6 bytes."""
    mmproj_mb: float
    """f16."""


class OtherTokens(Exception):
    """llama-server and the student count other tokens of one prompt."""


def measure(name: str, folder: Path, toolchain: Toolchain) -> Measured:
    """Builds, converts and asks. Raises ToolError and OtherTokens."""
    import families
    import torch

    from pocketvlm.student.checkpoint import complete_config, load_model
    from pocketvlm.student.generation import next_tokens
    from pocketvlm.student.processor_files import load_tokenizer
    from pocketvlm.student.prompt import PromptEncoder
    from pocketvlm.student.scoring import encode_images

    source, device = families.build(name, folder / "base"), Device.model_validate(families.DEVICES[name])
    geometry = read_geometry(source)
    family = geometry.family
    encoder = PromptEncoder(load_tokenizer(source), geometry, Task(question="What is it?", classes=[{"a": ""}, {"b": ""}]))
    merged = folder / "merged"
    load_model(source).to(torch.bfloat16).save_pretrained(merged)
    complete_config(merged)
    family.save_processor(merged, source, geometry, device)
    exact, text, mmproj = (folder / f"{part}.gguf" for part in ("exact", "text", "mmproj"))
    toolchain.convert(merged, text=text, text_type="bf16", mmproj=mmproj, mmproj_type="f16")
    toolchain.run("llama-quantize", ["--allow-requantize", str(text), str(exact), "f32", "1"])
    pictures = _pictures(device.canvas_px or device.longest_edge_px)
    model = load_model(source)
    encoded = list(encode_images(family, model, encoder, family.eye(geometry, device, source), pictures))
    ours = next_tokens(family, model, encoder, encoded, after="")
    gaps = []
    with LlamaServer(toolchain, exact, mmproj, media_marker=MEDIA) as server:
        for picture, image, values in zip(pictures, encoded, ours, strict=True):
            said = server.complete(encoder.shipped, _png(picture), grammar=PRINTABLE, max_new_tokens=1, top=1 << 20)
            if said.prompt_tokens != len(image.prompt_ids):
                raise OtherTokens(f"llama-server counts {said.prompt_tokens} prompt tokens, not {len(image.prompt_ids)}")
            squares = [(values[token] - said.steps[0].logprobs[token]) ** 2 for token in values]
            gaps.append((sum(squares) / len(squares)) ** 0.5)
    return Measured(
        canvas_px=device.canvas_px or device.longest_edge_px, device_exact=family.device_exact,
        image_tokens=encoded[0].prompt_ids.count(encoder.image_id), prompt_tokens=len(encoded[0].prompt_ids),
        layout_nats=round(max(gaps), 4), text_mb=round(text.stat().st_size / 1e6, 2),
        mmproj_mb=round(mmproj.stat().st_size / 1e6, 2),
    )  # fmt: skip


def _pictures(side: int) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (4 + i, 5, 3), dtype=np.uint8)).resize((side, side)) for i in range(IMAGES)]


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """A line for each number that is another one than in the record."""
    if before["llama_cpp"] == now["llama_cpp"]:
        lines = ["the record is of the same llama.cpp"]
    else:
        lines = [f"the record is of llama.cpp {before['llama_cpp'][:9]}, this is {now['llama_cpp'][:9]}"]
    for name in sorted(before["families"].keys() | now["families"].keys()):
        old, new = before["families"].get(name), now["families"].get(name)
        if old is None or new is None:
            lines.append(f"  {name}: {'is new' if old is None else 'is gone'}")
            continue
        lines += [f"  {name}: {key} was {old[key]}, is {new[key]}" for key in new if old.get(key) != new[key]]
    return lines if len(lines) > 1 else [*lines, "  nothing differs"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures every family. 1 when one of them could not be."""
    parser = argparse.ArgumentParser(prog="python -m bench.families", description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--write", action="store_true", help="make it the record: docs/families.json")
    options = parser.parse_args(arguments)
    import families

    if unknown := [name for name in options.names if name not in families.NAMES]:
        parser.error(f"there is no {', '.join(unknown)}; the families are {', '.join(families.NAMES)}")
    if options.names and options.write:
        parser.error("--write: the record is of all families; leave their names out")
    calm_idle_threads()
    toolchain = find_toolchain(read_environment())
    found: dict[str, Any] = {}
    failed: list[str] = []
    for name in options.names or families.NAMES:
        try:
            with tempfile.TemporaryDirectory() as folder:
                found[name] = asdict(measure(name, Path(folder), toolchain))
        except (ToolError, OtherTokens) as error:
            failed.append(name)
            print(f"{name:<12} {error}", flush=True)
            continue
        print(f"{name:<12} " + ", ".join(f"{words} {found[name][key]}" for key, words in SHOWN.items()), flush=True)
    now = {"llama_cpp": read_pin().commit, "families": found}
    if RECORD.is_file():
        before = json.loads(RECORD.read_text())
        asked = set(options.names or [*before["families"], *found]) - set(failed)
        before["families"] = {name: row for name, row in before["families"].items() if name in asked}
        print("\n".join(differences(before, now)))
    if failed:
        print(f"not measured: {', '.join(failed)}; change student/ until the two sides agree")
        return 1
    if options.write:
        RECORD.write_text(json.dumps(now, indent=1) + "\n")
        print(f"recorded in {RECORD.relative_to(HERE)}; run `make docs`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
