"""The other side: TRL's SFTTrainer, as a newcomer runs it and as somebody runs it who knows what it costs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import Idefics3Processor, PrinterCallback, TrainerCallback
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from trl import SFTConfig, SFTTrainer

from bench.clock import Spent, measured
from bench.ours import text_targets
from bench.setting import DEFAULT_BUDGET_TILES, QUESTION, Setting
from pocketvlm.student import prompt
from pocketvlm.student.checkpoint import load_model
from pocketvlm.student.families.idefics3 import normalise
from pocketvlm.student.processor_files import CHAT_TEMPLATE, load_tokenizer


def processor(setting: Setting, *, longest_edge_px: int) -> Idefics3Processor:
    """transformers' own processor, with the image processor that needs no torchvision."""
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": longest_edge_px}, max_image_size={"longest_edge": setting.geometry.tile_px},
        do_image_splitting=True, do_resize=True, do_convert_rgb=True, resample=1, image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    tokens = setting.geometry.tokens_per_tile
    return Idefics3Processor(images, load_tokenizer(setting.checkpoint), image_seq_len=tokens, chat_template=CHAT_TEMPLATE)


def conversations(setting: Setting, count: int) -> Dataset:
    """The samples as TRL's documentation shows vision data."""
    rows = [
        {
            "images": [setting.pictures[i % len(setting.pictures)]],
            "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": setting.label(i)}],
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def newcomer(setting: Setting, number: int) -> Spent:
    """Defaults but for what does not run otherwise: 17 tiles, gradient checkpointing, adapters on every linear layer.

    A step of his takes longer than an epoch of ours, so that he gets few of them and the first, which warms up, is not
    counted; ours is counted whole.
    """
    edge = DEFAULT_BUDGET_TILES * setting.geometry.tile_px
    trainer = SFTTrainer(
        model=load_model(setting.checkpoint, dtype=setting.dtype),
        args=_config(setting, f"newcomer-{number}", batch_size=1, steps=setting.newcomer_steps, max_length=None),
        train_dataset=conversations(setting, setting.newcomer_steps),
        processing_class=processor(setting, longest_edge_px=edge),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    return _train(trainer, setting.newcomer_steps, skip_first=True)


def tuned(setting: Setting, number: int) -> Spent:
    """Our two tiles and token stream, answers masked, vision frozen, no gradient checkpointing; batches and steps as ours."""
    size = setting.batch_size
    samples = round(setting.images * setting.trainer.phases[0].epochs)
    model = load_model(setting.checkpoint, dtype=setting.dtype)
    trainer = SFTTrainer(
        model=model,
        args=_config(
            setting,
            f"tuned-{number}",
            batch_size=size,
            steps=samples // size,
            max_length=None,
            gradient_checkpointing=False,
            remove_unused_columns=False,
        ),
        train_dataset=conversations(setting, setting.images),
        processing_class=processor(setting, longest_edge_px=setting.geometry.tile_px),
        data_collator=_Stream(setting),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=text_targets(setting, model)),
    )
    return _train(trainer, samples)


class _Stream:
    """A collator with the phone's token stream: HF's processor cannot make two tiles."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        setting, samples, tiles = self._setting, [], []
        for row in rows:
            sight = setting.eye.look(row["images"][0].convert("RGB"))
            samples.append(setting.encoder.sample(sight.layout, row["messages"][1]["content"]))
            tiles.append(normalise(torch.from_numpy(sight.tiles[sight.places])).to(setting.dtype))
        ids, labels = map(torch.tensor, prompt.pad(samples, setting.encoder.end_id))
        lengths = torch.tensor([len(sample.ids) for sample in samples])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, "pixel_values": torch.stack(tiles)}


def _config(setting: Setting, name: str, *, batch_size: int, steps: int, **more: Any) -> SFTConfig:
    """`steps` optimiser steps; nothing is written."""
    return SFTConfig(
        output_dir=str(setting.folder / name), max_steps=steps, per_device_train_batch_size=batch_size, learning_rate=2e-4,
        bf16=setting.precision == "bf16", use_cpu=True, save_strategy="no", logging_steps=1, report_to="none", disable_tqdm=True,
        dataloader_pin_memory=False, **more,
    )  # fmt: skip


class _FirstStep(TrainerCallback):  # type: ignore[misc]
    """Notes when the first step ends."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 1:
            self.wall, self.cpu = time.perf_counter(), time.process_time()


def _train(trainer: SFTTrainer, samples: int, *, skip_first: bool = False) -> Spent:
    """Trains on `samples`. `skip_first`: steps are of one sample, and what comes before the end of the first is not counted."""
    seen: dict[str, Any] = {}
    collate = trainer.data_collator

    def noting(rows: Any) -> Any:
        batch = collate(rows)
        seen["tokens"], seen["tiles"] = batch["input_ids"].shape[1], batch["pixel_values"].shape[1]
        return batch

    trainer.data_collator = noting
    trainer.remove_callback(PrinterCallback)
    first = _FirstStep()
    trainer.add_callback(first)
    wall, cpu = time.perf_counter(), time.process_time()
    with measured(samples) as spent:
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    spent.notes = {**seen, "first_loss": losses[0], "steps": len(losses), "first_step_seconds": round(first.wall - wall, 3)}
    if skip_first:
        spent.units -= 1
        spent.seconds -= first.wall - wall
        spent.cpu_seconds -= first.cpu - cpu
    return spent
