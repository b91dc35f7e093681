"""What the licence of an image allows: may a copy of it be passed on, and on which terms?

The published images are letterboxed to the device's canvas, so a licence that forbids changed copies forbids these. Only licences
on a list are taken for permission; everything else, and none, is not. Whether a licence of training images binds a model that
was trained on them is not decided here: the card lists them, so that its reader can judge.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

Allows = Literal["attribution", "share alike", "non-commercial", "nothing"]


@dataclass(frozen=True)
class Terms:
    """What one licence text means here."""

    allows: Allows
    hub_id: str | None
    """The Hub's identifier of the licence, for a card's front matter; None where it has none."""
    why: str = ""
    """Why nothing is allowed."""


PERMISSIVE: Mapping[str, str | None] = {
    "cc0": "cc0-1.0", "publicdomain/zero": "cc0-1.0", "public domain": None, "publicdomain/mark": None, "pddl": "pddl",
    "odc-by": "odc-by", "odc attribution": "odc-by", "cdla-permissive-1.0": "cdla-permissive-1.0",
    "cdla-permissive-2.0": "cdla-permissive-2.0", "apache-2.0": "apache-2.0", "apache 2.0": "apache-2.0",
    "apache license 2.0": "apache-2.0", "no known copyright restrictions": None, "united states government work": None,
}  # fmt: skip
"""Part of a licence's text, in lower case -> the Hub's id. All of these allow changed copies of anybody."""
EXACT: Mapping[str, str] = {
    "mit": "mit", "mit license": "mit", "isc": "isc", "bsd": "bsd",
    "bsd-2-clause": "bsd-2-clause", "bsd-3-clause": "bsd-3-clause",
}  # fmt: skip
"""Whole texts of the same, too short to be looked for inside others."""
SHARE_ALIKE: Mapping[str, str] = {"odbl": "odbl", "open database license": "odbl", "cdla-sharing-1.0": "cdla-sharing-1.0"}
NO_LICENCE = "no licence stated"
CC_VERSIONS = {"by": ("2.0", "2.5", "3.0", "4.0"), "by-sa": ("3.0", "4.0"), "by-nc": ("2.0", "3.0", "4.0"),
               "by-nc-sa": ("2.0", "3.0", "4.0")}  # fmt: skip
"""Versions for which the Hub has an id of its own."""
_CC = re.compile(r"creativecommons\.org/licenses/(by(?:-nc|-nd|-sa)*)/(\d\.\d)")
_CC_SHORT = re.compile(r"\bcc[-_ ]?(by(?:[-_ ](?:nc|nd|sa))*)(?:[-_ ]?(\d\.\d))?(?![\w])")
_CC_LONG = re.compile(r"\battribution((?:[- ](?:non-?commercial|share-?alike|no-?deriv\w*))*)(?:\s+(\d\.\d))?")


def terms(licence: str | None) -> Terms:
    """What a licence allows, by its name, its identifier or the address of its text."""
    if licence is None or not licence.strip():
        return Terms("nothing", None, "no licence is stated")
    text = " ".join(licence.lower().split())
    found = _creative_commons(text)
    if found:
        return found
    if text in EXACT:
        return Terms("attribution", EXACT[text])
    for part, hub_id in PERMISSIVE.items():
        if part in text:
            return Terms("attribution", hub_id)
    for part, hub_id in SHARE_ALIKE.items():
        if part in text:
            return Terms("share alike", hub_id)
    return Terms("nothing", None, "not on the list of licences that permit changed copies")


def _creative_commons(text: str) -> Terms | None:
    """Of a Creative Commons licence with attribution; None if the text names none."""
    match = _CC.search(text) or _CC_SHORT.search(text)
    if match:
        code = re.sub(r"[_ ]", "-", match[1])
    else:
        match = _CC_LONG.search(text)
        if match is None or not ("creative commons" in text or "license" in text or "licence" in text):
            return None
        words = match[1].replace("-", "")
        code = "by" + "".join(f"-{mark}" for mark, word in (("nc", "noncommercial"), ("nd", "noderiv"), ("sa", "sharealike"))
                              if word in words)  # fmt: skip
    marks = code.split("-")
    if "nd" in marks:
        return Terms("nothing", None, "NoDerivatives: letterboxed copies are changed ones")
    hub_id = f"cc-{code}-{match[2]}" if match[2] in CC_VERSIONS.get(code, ()) else None
    return Terms("non-commercial" if "nc" in marks else "share alike" if "sa" in marks else "attribution", hub_id)


@dataclass
class Licences:
    """Images of a dataset by licence, and whose they are."""

    images: Counter[str | None] = field(default_factory=Counter)
    """Licence as the dataset writes it -> images."""
    authors: dict[str | None, Counter[str]] = field(default_factory=dict)
    """Licence -> author -> images; only of images with an author."""
    sources: Counter[str] = field(default_factory=Counter)
    """Source -> images."""

    def add(self, licence: str | None, author: str | None, source: str) -> None:
        """Counts one image."""
        self.images[licence] += 1
        self.sources[source] += 1
        if author:
            self.authors.setdefault(licence, Counter())[author] += 1

    def by_frequency(self) -> list[tuple[str | None, int]]:
        """Licences and their images, the commonest first."""
        return sorted(self.images.items(), key=lambda item: (-item[1], str(item[0])))


@dataclass(frozen=True)
class Decision:
    """Whether the images may be published; `lines` say why, licence by licence."""

    allowed: bool
    lines: list[str]
    hub_ids: list[str]
    """For the front matter of the dataset's card; `other` stands for those without an id."""


def decide(licences: Licences, *, non_commercial: bool) -> Decision:
    """The licence gate of a dataset. `non_commercial`: the publisher says that publishing serves no commercial purpose."""
    lines, ids, stopped = [], set(), False
    for licence, count in licences.by_frequency():
        found = terms(licence)
        stops = not may_pass_on(licence, non_commercial=non_commercial)
        stopped |= stops
        ids.add(found.hub_id or "other")
        verdict = "stops it" if stops else "allows it"
        lines.append(f"{verdict}: {count} images under {licence or 'no licence'}{_because(found, stops)}")
    if not licences.images:
        return Decision(False, ["stops it: the dataset has no images"], [])
    return Decision(not stopped, lines, sorted(ids))


def may_pass_on(licence: str | None, *, non_commercial: bool) -> bool:
    """Whether one image may be published."""
    allows = terms(licence).allows
    return allows in ("attribution", "share alike") or (allows == "non-commercial" and non_commercial)


def _because(found: Terms, stops: bool) -> str:
    if found.allows == "nothing":
        return f" ({found.why})"
    if found.allows == "non-commercial":
        return (" (non-commercial purposes only; --non-commercial says that yours is none)" if stops
                else " (with attribution, for non-commercial purposes only)")  # fmt: skip
    if found.allows == "share alike":
        return " (with attribution; copies stay under this licence)"
    return " (with attribution)"


def reasons(decision: Decision) -> list[str]:
    """What stops the images."""
    return [line.removeprefix("stops it: ") for line in decision.lines if line.startswith("stops it: ")]


def credit_lines(licences: Licences, most_authors: int) -> Iterable[tuple[str, int, str, int]]:
    """(licence, images, authors as text, authors left out) for an attribution, the commonest licence first."""
    for licence, count in licences.by_frequency():
        authors = sorted(licences.authors.get(licence, Counter()))
        yield licence or NO_LICENCE, count, "; ".join(authors[:most_authors]), max(0, len(authors) - most_authors)
