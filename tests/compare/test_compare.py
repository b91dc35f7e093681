"""Comparing finished runs: what differs, who is right where, and a page that needs nothing else."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from finished import CLASSES, Finished, row, rows, write
from runs import job

from pocketvlm.artifacts.folder import FolderStore
from pocketvlm.compare.flips import against
from pocketvlm.compare.page import write_comparison
from pocketvlm.compare.runs import read_run
from pocketvlm.compare.settings import ABSENT, numbers, settings_that_differ
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError

HOSTILE = "<script>alert(1)</script>"
REASONING = {"task": {"answer": "reasoning", "reasons": ["It looks so: {description}."]}, "device": {"max_new_tokens": 64}}


class Shelf:
    """A store, and finished runs in it by a word."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FolderStore(folder / "store")
        self.environment = Environment(store=str(folder / "store"))
        self.ids: dict[str, str] = {}

    def add(self, word: str, said: Sequence[str], data: dict[str, Any] | None = None, **changes: Any) -> str:
        """A run whose q8_0 said this of the test images; returns its id."""
        recipe = {"task": {"classes": [{name: "a digit"} for name in CLASSES]}, "name": word}
        recipe |= changes.pop("recipe", {})
        (self.folder / f"{word}.yaml").write_text(json.dumps(job("digits", _merge(recipe))))
        run = Finished(data or rows(), {"q8_0": said}, recipe=_merge(recipe), **changes)
        release = write(self.store, self.folder / word, run)
        self.ids[word] = release.run
        return release.run

    def compare(self, *words: str) -> tuple[str, str]:
        """(page, summary) of runs by their words, or by whatever else names them."""
        named = [self.ids.get(word, word) for word in words]
        path, summary = write_comparison(named, self.environment, self.folder / "page.html")
        return path.read_text(encoding="utf-8"), summary


def _merge(recipe: dict[str, Any]) -> dict[str, Any]:
    classes = {"classes": [{name: "a digit"} for name in CLASSES]}
    return {**recipe, "task": {**classes, **recipe.get("task", {})}}


def labels(data: dict[str, Any] | None = None) -> list[str]:
    return [item.label for item in (data or rows())["test"]]


def but(said: Sequence[str], **wrong: str) -> list[str]:
    """These answers with others at `at_<place>`."""
    changed = list(said)
    for place, answer in wrong.items():
        changed[int(place.removeprefix("at_"))] = answer
    return changed


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_each_common_image_is_in_its_group(shelf: Shelf) -> None:
    right = labels()  # zero one two zero ...
    shelf.add("a", but(right, at_0="one", at_1="zero", at_2="zero", at_3="two"))
    shelf.add("b", but(right, at_2="zero", at_3="one", at_4="two"), recipe={"trainer": {"seed": 1}})
    found = against(*(read_run(shelf.store, shelf.ids[word], word.upper()) for word in "ab"))
    assert found.types == ("q8_0", "q8_0")
    assert (found.common, found.images, found.both_right, found.same_wrong) == (12, 12, 7, 1)
    test = rows()["test"]
    assert [flip.baseline.sha256 for flip in found.only_run] == [test[0].sha256, test[1].sha256]
    assert [flip.baseline.sha256 for flip in found.only_baseline] == [test[4].sha256]
    assert [flip.answers for flip in found.both_wrong] == [("two", "one")]
    assert found.correct == (8, 9)
    assert found.difference == pytest.approx(1 / 12)
    assert found.interval[0] < found.difference < found.interval[1]
    assert found.p_value == pytest.approx(1.0)


def test_settings_that_differ_are_shown_and_no_others(shelf: Shelf) -> None:
    phases = [{"method": "full", "train": ["text"], "epochs": 2, "learning_rate": 0.002}]
    shelf.add("a", labels())
    shelf.add("b", labels(), recipe={"trainer": {"phases": phases * 2, "seed": 3}, "quantiser": {"types": ["q8_0"]}})
    rows_ = settings_that_differ([read_run(shelf.store, shelf.ids[word], word) for word in "ab"])
    found = {row.key: row.values for row in rows_}
    assert found["trainer.seed"] == ["0", "3"]
    assert found["trainer.phases[1].epochs"] == [ABSENT, "2.0"]
    assert found["quantiser.types"][1] == '["q8_0"]'
    assert not any(key.startswith(("task.", "labeller.", "device.")) for key in found)
    page, summary = shelf.compare("a", "b")
    assert "trainer.seed" in summary
    assert "trainer.<wbr>seed" in page


def test_images_of_one_run_alone_are_counted_and_not_compared(shelf: Shelf) -> None:
    other = rows()
    other["test"] = [*other["test"][:5], *(row(number, CLASSES[number % 3]) for number in range(40, 47))]
    shelf.add("a", labels())
    shelf.add("b", labels(other), other, recipe={"labeller": {"split": {"seed": 5}}})
    page, summary = shelf.compare("a", "b")
    assert "B against A on 5 common images: 0.0 points" in summary
    assert "All runs use one dataset" not in page


def test_images_that_are_labelled_otherwise_are_told_and_not_compared(shelf: Shelf) -> None:
    other = rows()
    other["test"][0] = row(18, "two")
    shelf.add("a", labels())
    shelf.add("b", labels(other), other, recipe={"trainer": {"seed": 5}})
    page, summary = shelf.compare("a", "b")
    assert "B against A on 11 common images" in summary
    assert "1 common test images have another label in B" in page


def test_runs_without_a_common_image_say_so(shelf: Shelf) -> None:
    other = rows()
    other["test"] = [row(number, CLASSES[number % 3]) for number in range(40, 52)]
    shelf.add("a", labels())
    shelf.add("b", labels(other), other, recipe={"trainer": {"seed": 5}})
    page, summary = shelf.compare("a", "b")
    assert "A and B have no test image in common" in summary
    assert "no test image is common to both" in page


def test_a_reasoning_run_is_compared_with_a_label_run_by_the_label(shelf: Shelf) -> None:
    right = labels()
    shelf.add("plain", but(right, at_0="one"))
    reasons = [f"Reasoning: It looks so.\nAnswer: {label}" for label in right]
    shelf.add("reasoning", [*reasons[:-1], "Reasoning: It never ends"], recipe=REASONING)
    found = against(*(read_run(shelf.store, shelf.ids[word], word) for word in ("plain", "reasoning")))
    assert (len(found.only_baseline), len(found.only_run)) == (1, 1)
    assert found.only_baseline[0].answers[1] == "Reasoning: It never ends"


def test_named_numbers_of_any_task_stand_side_by_side(shelf: Shelf) -> None:
    one = {"name": "food_items", "type": "list", "accuracy": 0.5, "list": {"f1": 0.75}}
    other = {"name": "food_items", "type": "list", "accuracy": 0.5, "list": {"f1": 0.8125}}
    more = {"name": "only_here", "type": "string", "accuracy": 0.5, "list": None}
    shelf.add("a", labels(), numbers={"fields": [one, more], "written": {"valid": 1.0}, "tokens": {"median": 12.5}})
    shelf.add("b", labels(), numbers={"fields": [other], "written": {"valid": 0.9}}, recipe={"trainer": {"seed": 5}})
    runs = [read_run(shelf.store, shelf.ids[word], word) for word in "ab"]
    assert {row.key: row.values for row in numbers(runs, ["q8_0", "q8_0"])} == {
        "fields · food items · accuracy": ["0.5", "0.5"], "fields · food items · list · f1": ["0.75", "0.8125"],
        "written · valid": ["1", "0.9"],
    }  # fmt: skip
    page, _ = shelf.compare("a", "b")
    assert "fields · food items · list · f1" in page
    assert "12.5" in page


FIELDS: dict[str, Any] = {
    "kind": "extract", "classes": [], "question": 'What is there? Answer as {"is_food": 1, "food_items": ["egg"]}',
    "fields": [{"is_food": {"type": "integer", "description": "1: food"}}, {"food_items": {"type": "list", "description": ""}}],
}  # fmt: skip


def test_fields_are_shown_by_name_and_those_that_differ_stand_out(shelf: Shelf) -> None:
    label = '{"is_food":1,"food_items":["apple","egg"]}'
    other, cut = label.replace("egg", HOSTILE), '{"is_food":'
    data = {split: [replace(item, label=label, answer=label) for item in of_split] for split, of_split in rows().items()}
    recipe = {"task": FIELDS, "device": {"max_new_tokens": 64}, "labeller": {"teacher": {"model": "fake"}}}
    shelf.add("a", [label] * 12, data, recipe=recipe)
    shelf.add("b", [other, cut, *[label] * 10], data, recipe={**recipe, "trainer": {"seed": 1}})
    page, _ = shelf.compare("a", "b")
    wrong, unreadable = page.split("</figure>")[:2]
    body = wrong.split('<table class="fields">')[1].split("<tr")[2:]
    lines = {line.split("</th>")[0].partition('row">')[2].replace("<wbr>", ""): line for line in body}
    values = {name: re.findall(r'class="value">([^<]*)<', line) for name, line in lines.items()}
    assert values == {"is_food": ["1"], "food_items": ["apple", "egg", "apple", "egg", "apple", html.escape(HOSTILE)]}
    assert re.findall(r'class="(right|wrong|quiet)"', lines["food_items"]) == ["right", "wrong"]
    assert re.findall(r'class="(right|wrong|quiet)"', lines["is_food"]) == ["quiet"]
    assert unreadable.count(">unreadable<") == 2
    assert f"unreadable: {html.escape(cut, quote=False)}".replace('"', "&#34;") in unreadable
    assert "food_items&#34;:" not in page  # nothing else is JSON


def test_more_than_two_runs_are_each_held_against_the_first(shelf: Shelf) -> None:
    right = labels()
    shelf.add("two-stage", right)
    shelf.add("lora", but(right, at_0="one"), recipe={"trainer": {"seed": 1}})
    shelf.add("one-stage", but(right, at_0="one", at_1="two"), recipe={"trainer": {"seed": 2}})
    page, summary = shelf.compare("two-stage", "lora", "one-stage")
    assert "B against A on 12 common images: \u22128.3 points" in summary
    assert "C against A on 12 common images: \u221216.7 points" in summary
    assert 'id="flips-B"' in page
    assert 'id="flips-C"' in page
    assert "of 2 tests" in page


class Page(HTMLParser):
    """Tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_needs_nothing_else_and_escapes_what_comes_from_outside(shelf: Shelf) -> None:
    data = rows(source_id=HOSTILE, source="folder")
    shelf.add("a", but(labels(), at_0=HOSTILE), data)
    shelf.add("b", labels(), data, recipe={"trainer": {"seed": 1}, "task": {"question": f"Which {{x}} & 'y'?\n{'z' * 900}"}})
    page, _ = shelf.compare("a", "b")
    tags = Page(page).tags
    assert not any(tag in ("script", "link", "iframe", "object") for tag, _ in tags)
    sources = [attributes["src"] or "" for tag, attributes in tags if tag == "img"]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert "http" not in page.split("</style>")[1]
    assert "&lt;script&gt;alert(1)" in page


def test_equal_runs_give_equal_pages(shelf: Shelf) -> None:
    shelf.add("a", labels())
    shelf.add("b", but(labels(), at_3="one"), recipe={"trainer": {"seed": 1}})
    assert shelf.compare("a", "b") == shelf.compare("a", "b")


def test_a_run_is_named_by_its_file_its_id_or_its_release(shelf: Shelf, tmp_path: Path) -> None:
    shelf.add("a", labels())
    shelf.add("b", labels(), recipe={"trainer": {"seed": 1}}, version="7")
    pages = {shelf.compare(*named)[0] for named in
             (("a", "b"), (str(tmp_path / "a.yaml"), "b/7"), (str(tmp_path / "a.yaml"), shelf.ids["b"]))}  # fmt: skip
    assert len(pages) == 1


@pytest.mark.parametrize(("named", "says"), [
    (["a"], "name 2 to 26"), (["a", "a"], "named twice"), (["a", "nobody"], "nobody: is neither a run file"),
    (["a", "a/9"], "a/9: is neither"), (["a", "../x"], "is neither"),
])  # fmt: skip
def test_what_cannot_be_compared_is_named(shelf: Shelf, named: list[str], says: str) -> None:
    shelf.add("a", labels())
    with pytest.raises(UserError, match=says):
        shelf.compare(*named)


def test_a_run_that_is_not_evaluated_says_what_to_do(shelf: Shelf, tmp_path: Path) -> None:
    shelf.add("a", labels())
    (tmp_path / "later.yaml").write_text(json.dumps(job("digits", {"trainer": {"seed": 9}})))
    with pytest.raises(UserError, match="has not been evaluated"):
        shelf.compare("a", str(tmp_path / "later.yaml"))


def test_a_page_that_cannot_be_written_says_where_to(shelf: Shelf, tmp_path: Path) -> None:
    shelf.add("a", labels())
    shelf.add("b", labels(), recipe={"trainer": {"seed": 1}})
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--to FILE"):
        write_comparison(list(shelf.ids.values()), shelf.environment, tmp_path / "file" / "page.html")
