"""The cards of the two repositories: front matter for the Hub, and what a person must know. Equal releases give equal text."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pocketvlm.artifacts.release import Release
from pocketvlm.publish.dataset_copy import Credits
from pocketvlm.publish.licences import NO_LICENCE, Licences, credit_lines, terms
from pocketvlm.run_file import is_hub_shaped

ROLES: Mapping[str, str] = {
    "text_model": "text model", "mmproj": "vision encoder and projector", "prompt": "the prompt, exact bytes",
    "grammar": "the grammar of the answer", "golden": "held-out images with the measured answers, for replaying",
}  # fmt: skip
AUTHORS_SHOWN = 40
"""Of one licence in the table of a card; all of them are in ATTRIBUTION.md."""
TAGS = ["gguf", "llama.cpp", "pocketvlm", "vision-language-model", "on-device"]
UNKNOWN = "unknown"
"""The Hub's id for a licence that nobody has stated."""


@dataclass(frozen=True)
class Said:
    """What the cards say beside what the release says of itself."""

    model_id: str
    dataset_id: str | None
    """None: not published; then `not_published` says why."""
    not_published: str
    licence: str
    """The Hub's id of the model's licence."""
    merged: bool
    golden_left_out: int
    credits: Credits


def model_card(release: Release, body: str, prompt: str, grammar: str, said: Said) -> str:
    """README.md of the model: the release's own card between front matter and what the Hub's reader needs besides.

    `release` lists the files that are published.
    """
    return _templates().get_template("model_card.md.jinja").render(
        front_matter=_model_front_matter(release, said), body=body.rstrip("\n") + "\n", release=release, roles=ROLES,
        merged=said.merged, golden_left_out=said.golden_left_out, prompt=prompt, grammar=grammar.rstrip("\n"),
        fence=_fence(prompt, grammar), base_on_hub=is_hub_shaped(release.base), licence_line=_licence_line(said.licence),
        dataset_id=said.dataset_id, not_published=said.not_published, **_data(said.credits),
    )  # fmt: skip


def dataset_card(release: Release, hub_ids: Sequence[str], left_out: int, said: Said) -> str:
    """README.md of the dataset. `left_out`: addresses that are not public."""
    allows = {terms(licence).allows for licence in said.credits.licences.images}
    return _templates().get_template("dataset_card.md.jinja").render(
        front_matter=_dataset_front_matter(release, hub_ids, said.credits.rows), name=release.name, model_id=said.model_id,
        question=said.credits.question, left_out=left_out, non_commercial="non-commercial" in allows,
        share_alike=_shares_alike(said.credits.licences), **_data(said.credits),
    )  # fmt: skip


def attribution(licences: Licences) -> str | None:
    """ATTRIBUTION.md with every author, where the cards cannot show them all; else None."""
    if all(len(authors) <= AUTHORS_SHOWN for authors in licences.authors.values()):
        return None
    parts = ["# Authors of the images, by licence\n"]
    for licence, count in licences.by_frequency():
        authors = sorted(licences.authors.get(licence, ()))
        parts += [f"\n## {_cell(licence or NO_LICENCE)} ({count} images)\n\n", *(f"- {_cell(author)}\n" for author in authors)]
    return "".join(parts)


def _shares_alike(licences: Licences) -> bool:
    return any(terms(licence).allows == "share alike" or "-sa" in (terms(licence).hub_id or "") for licence in licences.images)


def _data(credits: Credits) -> dict[str, Any]:
    return {
        "credits": credits, "total": sum(credits.rows.values()),
        "labelled": sorted(credits.labelled_by.items(), key=lambda item: (-item[1], item[0])),
        "attribution": list(credit_lines(credits.licences, AUTHORS_SHOWN)),
    }  # fmt: skip


def _model_front_matter(release: Release, said: Said) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    metric = "exact_match" if not release.classes else "accuracy"
    results = [
        EvalResult(
            task_type="image-text-to-text", task_name="One question about an image", dataset_split="test",
            dataset_type=said.dataset_id or release.name, dataset_name=f"{release.name}, held-out images", metric_type=metric,
            metric_value=pair.accuracy, metric_name=f"{metric.replace('_', ' ')} of the {name} pair on llama.cpp",
        )
        for name, pair in release.types.items()
    ]  # fmt: skip
    base: dict[str, Any] = {}
    if is_hub_shaped(release.base):
        base = {"base_model": release.base, "base_model_relation": "finetune"}
    data = ModelCardData(
        license=said.licence, pipeline_tag="image-text-to-text", tags=TAGS, model_name=release.name, eval_results=results,
        datasets=[said.dataset_id] if said.dataset_id else None, **base,
    )  # fmt: skip
    return f"---\n{data.to_yaml(line_break=chr(10)).rstrip()}\n---\n\n"


def _dataset_front_matter(release: Release, hub_ids: Sequence[str], splits: Collection[str]) -> str:
    from huggingface_hub import DatasetCardData

    ids = list(hub_ids)
    files = [{"split": split, "path": f"{split}-*.parquet"} for split in splits]
    data = DatasetCardData(
        license=ids[0] if len(ids) == 1 else ids, pretty_name=f"{release.name}: images and labels", tags=["pocketvlm"],
        task_categories=["image-classification" if release.classes else "image-text-to-text"],
        configs=[{"config_name": "default", "data_files": files}],
    )  # fmt: skip
    return f"---\n{data.to_yaml(line_break=chr(10)).rstrip()}\n---\n\n"


def _licence_line(licence: str) -> str:
    return "Nobody has stated a licence for this model." if licence == UNKNOWN else f"Licence of this model: {licence}."


def _fence(*texts: str) -> str:
    """A fence that no line of the texts can close."""
    longest = max((len(run) for text in texts for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("pocketvlm.publish", "."), autoescape=False, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.globals["cell"] = _cell
    return environment


def _cell(text: object) -> str:
    """Text of strangers that neither ends a table cell nor starts a tag or a link."""
    plain = " ".join(str(text).split())
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'"), ("[", "\\["), ("]", "\\]")):
        plain = plain.replace(sign, instead)
    return plain
