"""The page as a file: needs nothing else, and nothing from outside becomes markup or script."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pocketvlm.errors import UserError
from pocketvlm.review.page import render_page, script_json, write_review
from pocketvlm.review.sample import take_sample


class Elements(HTMLParser):
    """What a browser would see: elements with their attributes, and the text of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._inside: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag in self.texts:
            self._inside = tag
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[self._inside][-1] += data


def written(labelled: Any, tmp_path: Path, **options: Any) -> str:
    return write_review(labelled.run_file, labelled.environment, tmp_path / "page.html", **options).read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_allows_itself_nothing_but_its_own_script(elements: Any, tmp_path: Path) -> None:
    page = Elements(written(elements, tmp_path))
    for tag, attributes in page.found:
        assert not {"src", "href", "srcset", "action", "poster", "style"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")], tag
    assert {tag for tag, _ in page.found} & {"link", "iframe", "object", "embed", "base", "form"} == set()
    policy = next(attributes["content"] for tag, attributes in page.found if attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "img-src data:;" in policy
    for text in [*page.texts["style"], *page.texts["script"][1:]]:
        assert not re.search(r"https?://\w|url\(|@import|fetch\(|XMLHttp", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_hostile_texts_stay_data(hostile: Any, elements: Any, tmp_path: Path) -> None:
    html = written(hostile, tmp_path)
    page, plain = Elements(html), Elements(written(elements, tmp_path))
    assert [tag for tag, _ in page.found] == [tag for tag, _ in plain.found]
    block = page.texts["script"][0]
    assert not re.search(r"[<>&\u2028\u2029\u202e]", block)
    data = json.loads(block)
    assert {item["sha256"] for item in data["items"]} == set(hostile.rows)
    for item in data["items"]:
        known = hostile.rows[item["sha256"]]
        assert (item["label"], item["reason"], item["author"], item["source_id"]) == (
            known.label, known.teacher_reason, known.author, known.source_id)  # fmt: skip
    assert data["classes"] == list(hostile.run_file.run.task.classes)


def test_a_class_name_that_a_run_file_would_refuse_is_data_too(elements: Any) -> None:
    sample = take_sample(elements.run_file, elements.environment, 2)
    evil = "</script><script>alert(1)</script>"
    page = Elements(render_page(replace(sample, classes=[evil], name=evil, run=evil)))
    assert json.loads(page.texts["script"][0])["classes"] == [evil]
    assert len(page.texts["script"]) == 2


@pytest.mark.parametrize("text", ["</script>", "</ScRiPt >", "<!-- <script>", "&quot;", "\u2028"])
def test_json_in_a_script_element_holds_no_markup(text: str) -> None:
    block = str(script_json({text: [text]}))
    assert not set(block) & set("<>&\u2028")
    assert json.loads(block) == {text: [text]}


def test_equal_datasets_give_equal_pages(elements: Any, tmp_path: Path) -> None:
    assert written(elements, tmp_path) == written(elements, tmp_path)


def test_the_number_of_images_is_the_callers(elements: Any, tmp_path: Path) -> None:
    data = json.loads(Elements(written(elements, tmp_path, images=7)).texts["script"][0])
    assert len(data["items"]) == 7


def test_without_a_place_the_page_is_named_after_the_run(elements: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_review(elements.run_file, elements.environment, None)
    assert path == Path(f".pocketvlm/reviews/{elements.run}.html")
    assert path.is_file()


def test_a_place_that_cannot_be_written_is_named(elements: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="say another place"):
        write_review(elements.run_file, elements.environment, tmp_path / "file" / "page.html")
