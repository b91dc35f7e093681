"""The report: one safe, self-contained, accessible page."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest

from pocketvlm.report.data import ReportData
from pocketvlm.report.render import render_card, render_report

VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """Elements of a page; fails on one that is not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


@pytest.fixture(params=["bare", "hostile", "extracted", "reasoned"])
def data(request: pytest.FixtureRequest) -> ReportData:
    found: ReportData = request.getfixturevalue(request.param)
    return found


def test_every_element_is_closed(data: ReportData) -> None:
    assert Page(render_report(data)).elements


@pytest.mark.parametrize("known", [["teachers"], ["corrections"], ["teachers", "agreement"], ["teachers", "second_opinion"]])
def test_how_labels_came_about_is_shown_as_far_as_it_is_known(hostile: ReportData, known: list[str]) -> None:
    data = dataclasses.replace(hostile, labels={name: hostile.labels[name] for name in known})
    for text in (render_report(data), render_report(data.without_times())):
        assert ("The teacher" in text) == ("teachers" in known)
        assert ("38 of 40 labels were right: 95.0 %" in text) == ("corrections" in known)
        assert ("Both teachers name the same class for 90 of 100 images" in text) == ("second_opinion" in known)
    assert ("$4.75" in render_report(data)) == ("teachers" in known)
    assert "$4.75" not in render_report(data.without_times())


def test_names_that_are_markup_are_shown_as_text(hostile: ReportData) -> None:
    text = render_report(hostile)
    page = Page(text)
    assert not [tag for tag, _ in page.elements if tag == "script"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in text


def test_the_page_loads_nothing_and_runs_nothing(data: ReportData) -> None:
    for tag, attributes in Page(render_report(data)).elements:
        assert tag not in ("script", "link", "iframe", "object", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset"):
                assert value is not None and value.startswith(("data:image/png;base64,", "#"))
    assert "@import" not in render_report(data)
    assert "default-src &#39;none&#39;" in render_report(data) or "default-src 'none'" in render_report(data)


def test_every_picture_has_a_text_and_every_table_has_headers(hostile: ReportData) -> None:
    elements = Page(render_report(hostile)).elements
    assert all(attributes.get("alt") for tag, attributes in elements if tag == "img")
    assert all(attributes.get("aria-label") for tag, attributes in elements if tag == "svg")
    assert all(attributes.get("scope") in ("row", "col") for tag, attributes in elements if tag == "th")


def test_a_refused_model_is_said_so_with_both_numbers(hostile: ReportData) -> None:
    text = re.sub(r"<[^>]+>", "", render_report(hostile))
    assert "1 of 1 gates refuse this model" in text
    assert "0.95" in text and "0.8" in text


def test_the_copy_of_the_release_has_no_times(hostile: ReportData) -> None:
    with_times, without = render_report(hostile), render_report(hostile.without_times())
    assert "6.4" in with_times and "Latency" in with_times
    assert "Latency" not in without and ">ms<" not in without
    assert without == render_report(dataclasses.replace(hostile, times=None))


def test_the_number_of_wrong_answers_is_said_when_not_all_are_shown(hostile: ReportData) -> None:
    assert "here are 2 of them" in render_report(hostile)


def test_a_missing_picture_leaves_its_place(hostile: ReportData) -> None:
    assert "no picture" in render_report(hostile)


def test_the_model_card_keeps_its_tables_whole(hostile: ReportData) -> None:
    card = render_card(hostile)
    assert "<script>alert(1)</script> |" not in card
    widths = {line.replace("\\|", "").count("|") for line in card.splitlines() if line.startswith("| ") and "\\|" in line}
    assert widths == {6}


def test_fields_are_shown_beside_the_base_and_nothing_that_only_classes_have(extracted: ReportData) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", render_report(extracted)))
    for wanted in ("Field by field", "Every field right", "chrF2 by sacrebleu 2.6.0", "base: F1", "not device-exact",
                   "parity is stated and refuses nothing", "labelled rice, beans", "unreadable"):  # fmt: skip
        assert wanted in text
    for absent in ("macro F1", "ECE", "What is taken for what", "Class by class", "guessing the most frequent", "temperature"):
        assert absent not in text
    card = render_card(extracted)
    assert "| food_items |" in card.replace("`", "") and "It is not calibrated" in card and "not device-exact" in card


def test_reasons_are_shown_with_wrong_answers_and_what_they_buy_and_cost(reasoned: ReportData) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", render_report(reasoned))).replace("\u2212", "-").replace("\u2019", "'")
    assert "The glass is cracked in two places" in text
    assert "the difference is +3.0 points (95 % interval -8.0 to +14.0; McNemar's p 0.690)" in text
    assert "Beside solar-4567cdef" in text and "48" in text
    without = render_report(reasoned.without_times())
    assert "Beside solar-4567cdef" in without and "ms, prompt" not in without


def _contrast(first: str, second: str) -> float:
    """WCAG 2.2 contrast of two #rrggbb colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(
    ("text", "ground"),
    [("ink", "card"), ("muted", "card"), ("muted", "page"), ("ink", "track"), ("c1", "page"), ("on", "c1"), ("good", "good-soft"),
     ("bad", "bad-soft"), ("good", "card"), ("bad", "card")],
)  # fmt: skip
def test_text_can_be_read_in_both_schemes(bare: ReportData, scheme: int, text: str, ground: str) -> None:
    blocks = re.findall(r":root \{(.*?)\}", render_report(bare), re.DOTALL)
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", blocks[scheme]))
    assert _contrast(colours[text], colours[ground]) >= 4.5
