"""Which files of a dataset make up which split: what its card says, else what the names of its files say.

The rules are those by which the Hub's viewer and `load_dataset` find splits, read from their documentation:
<https://huggingface.co/docs/hub/datasets-data-files-configuration>.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pocketvlm.errors import DataError, RunFileError
from pocketvlm.sources.record import hint

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
PARQUET = "parquet"
LAYOUTS = {
    PARQUET: (".parquet",),
    "imagefolder": (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    "webdataset": (".tar",),
    "arrow": (".arrow",),
}
"""Name of a layout, as `datasets` calls it, and what its files end in. The first wins a draw."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Of an image folder: what is known of its images."""
_NO_DATA = ("README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_SHARDED = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_WORD_ENDS = r"[-._ 0-9]"


@dataclass(frozen=True)
class Layout:
    """Files by split, both in a fixed order, and how they are laid out."""

    kind: str
    """Key of LAYOUTS."""
    splits: dict[str, list[str]]
    card: Mapping[str, Any]
    """What the card says of this configuration: its features, and options of its reader."""


def find_layout(names: Iterable[str], card: Mapping[str, Any], config: str | None, split: str | None) -> Layout:
    """The files of `config`, and of one split or all.

    Raises RunFileError when the run file names what is not there or must choose, DataError when no data is found.
    """
    there = sorted(name for name in names if not _hidden(name))
    block = _configuration(card, config)
    splits = _by_patterns(there, block) if block.get("data_files") else _by_names(_below(there, block.get("data_dir")))
    splits = {name: files for name, files in splits.items() if files}
    kind = _kind([file for files in splits.values() for file in files])
    endings = LAYOUTS[kind]
    kept = {
        name: [file for file in files if file.lower().endswith(endings) or (kind == "imagefolder" and _is_metadata(file))]
        for name, files in splits.items()
    }
    kept = {name: files for name, files in kept.items() if files}
    if split is not None:
        if split not in kept:
            raise RunFileError(f"run.labeller.source.split: there is no split {split}, but {', '.join(kept)}{hint(split, kept)}")
        kept = {split: kept[split]}
    return Layout(kind, kept, block)


def _configuration(card: Mapping[str, Any], config: str | None) -> Mapping[str, Any]:
    """The block of the card for a configuration; an empty one where the card names none."""
    blocks = {_text(block.get("config_name", "default")): block for block in _dicts(card.get("configs"))}
    infos = {_text(info.get("config_name", "default")): info for info in _dicts(card.get("dataset_info"))}
    names = list(blocks) or list(infos)
    if config is not None and config not in names:
        there = f"but {', '.join(names)}{hint(config, names)}" if names else "and its card names none; remove the key"
        raise RunFileError(f"run.labeller.source.config: the dataset has no configuration {config}, {there}")
    defaults = [name for name, block in blocks.items() if block.get("default") is True] or [n for n in names if n == "default"]
    if config is None and len(names) > 1 and len(defaults) != 1:
        raise RunFileError(f"run.labeller.source.config: the dataset has the configurations {', '.join(names)}; name one")
    chosen = config or (defaults or names or ["default"])[0]
    return {**infos.get(chosen, {}), **blocks.get(chosen, {})}


def _by_patterns(there: list[str], block: Mapping[str, Any]) -> dict[str, list[str]]:
    """Files by the card's `data_files`, in its order of splits and patterns. Patterns find files of the dataset and no others."""
    from fsspec.utils import glob_translate  # type: ignore[import-untyped]

    given, prefix = _patterns(block["data_files"]), _text(block.get("data_dir")).strip("/")
    splits: dict[str, list[str]] = {}
    for split, patterns in given:
        found: dict[str, None] = {}
        for pattern in patterns:
            whole = f"{prefix}/{pattern}" if prefix else pattern
            try:
                expression = re.compile(glob_translate(whole.removeprefix("./")))
            except (ValueError, re.error) as error:
                raise DataError(f"the dataset's card: data_files {pattern} is no pattern of files ({error}); "
                                "choose another configuration or revision") from error
            found |= dict.fromkeys(name for name in there if expression.match(name))
        splits.setdefault(split, []).extend(found)
    if not any(splits.values()):
        shown = ", ".join(pattern for _, patterns in given for pattern in patterns)[:300]
        raise DataError(f"the dataset's card: data_files {shown} name no file of the dataset; "
                        "choose another configuration or revision")
    return splits


def _patterns(given: Any) -> list[tuple[str, list[str]]]:
    if isinstance(given, Mapping):
        return [(_text(split), _texts(patterns)) for split, patterns in given.items()]
    if isinstance(given, list) and any(isinstance(item, Mapping) for item in given):
        return [(_text(item.get("split", "train")), _texts(item.get("path"))) for item in _dicts(given)]
    return [("train", _texts(given))]


def _by_names(there: list[str]) -> dict[str, list[str]]:
    """Files by their split: `data/<split>-00000-of-00001.*`, else by a folder's name, else by a file's, else all in train."""
    sharded: dict[str, list[str]] = {}
    for name in there:
        if found := _SHARDED.fullmatch(name):
            sharded.setdefault(found[1], []).append(name)
    if sharded:
        return {split: sharded[split] for split in [*(s for s in KEYWORDS if s in sharded), *sorted(sharded.keys() - KEYWORDS)]}
    for part in (_folders, _file):
        splits = {
            split: [name for name in there if any(_says(words, text, part is _file) for text in part(name))]
            for split, words in KEYWORDS.items()
        }
        if any(splits.values()):
            return splits
    return {"train": there}


def _says(words: tuple[str, ...], text: str, is_file: bool) -> bool:
    """Whether one of the words stands in the name, between its separators."""
    end = _WORD_ENDS if is_file else f"(?:{_WORD_ENDS}|$)"
    return re.search(f"(?:^|{_WORD_ENDS})(?:{'|'.join(words)}){end}", text) is not None


def _kind(files: list[str]) -> str:
    counts: Counter[str] = Counter()
    for file in files:
        if not _is_metadata(file):
            counts.update(kind for kind, endings in LAYOUTS.items() if file.lower().endswith(endings))
    if not counts:
        ends = sorted({f".{name.rpartition('.')[2]}" for name in files})[:5]
        raise DataError(f"the dataset holds no images that can be read, only {', '.join(ends) or 'nothing'}; PocketVLM reads "
                        "Parquet and Arrow files with images in them, image folders, and WebDataset tar files; download a zip "
                        "yourself and read it with kind: archive")
    return max(LAYOUTS, key=lambda kind: counts[kind])


def _below(there: list[str], folder: Any) -> list[str]:
    prefix = f"{_text(folder).strip('/')}/" if folder else ""
    return [name for name in there if name.startswith(prefix)]


def _hidden(name: str) -> bool:
    *folders, file = name.split("/")
    return file in _NO_DATA or any(part.startswith((".", "__")) for part in folders) or file.startswith(".")


def _is_metadata(name: str) -> bool:
    return name.rpartition("/")[2] in METADATA


def _folders(name: str) -> list[str]:
    return name.split("/")[:-1]


def _file(name: str) -> list[str]:
    return name.split("/")[-1:]


def _dicts(value: Any) -> list[Mapping[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, Mapping)]


def _text(value: Any) -> str:
    """A text or number of a card. Never a list's text: a few lines of YAML can stand for a list of gigabytes."""
    return str(value) if isinstance(value, str | int) else ""


def _texts(value: Any) -> list[str]:
    return [text for item in (value if isinstance(value, list) else [value]) if (text := _text(item))]
