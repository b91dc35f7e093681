"""The page as a person uses it, in a real Chromium: by mouse, by keyboard, over a reload, and what is saved at the end."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from pocketvlm.artifacts.corrections import NONE, read_corrections
from pocketvlm.review.page import write_review

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1120,1000")  # fmt: skip
WAIT_S = 10


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser with a profile of its own; it keeps what pages store until the module ends."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromedriver are not on PATH (Debian: chromium chromium-driver)")
    folder = tmp_path_factory.mktemp("chromium")
    options = Options()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = Chrome(options=options, service=Service(executable_path=driver))
    try:
        yield chrome
    finally:
        chrome.quit()


class Desk:
    """An open page and what a person does there."""

    def __init__(self, chrome: Chrome, page: Path, downloads: Path) -> None:
        self.chrome, self.page, self.downloads = chrome, page, downloads
        downloads.mkdir(exist_ok=True)
        # Motion would make a click miss what it was aimed at.
        features = [{"name": "prefers-reduced-motion", "value": "reduce"}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        chrome.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})
        chrome.get(page.as_uri())

    def find(self, selector: str) -> WebElement:
        return self.chrome.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def choose(self, number: int, label: str) -> None:
        """By mouse; an empty label is none of these."""
        self.find(f'#item-{number} [data-choice="{label}"]').click()

    def press(self, *keys: str) -> None:
        """On whatever has the focus."""
        ActionChains(self.chrome).send_keys(*keys).perform()

    def state(self, number: int) -> str:
        return self.text(f"#item-{number} .state")

    def current(self) -> str:
        return str(self.find(".item.current").get_attribute("id"))

    def shown(self) -> list[str]:
        cards = self.chrome.find_elements("css selector", ".item")
        return [str(card.get_attribute("id")) for card in cards if card.is_displayed()]

    def save(self) -> Path:
        """The downloaded file."""
        self.find("#save").click()
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if done := [path for path in self.downloads.glob("*.json") if path.stat().st_size]:
                return done[0]
            time.sleep(0.02)
        raise AssertionError(f"nothing was downloaded: {self.text('#message')}")

    def load(self, path: Path) -> str:
        """Gives the page a file, as its button does; returns what it says then."""
        self.find("#file").send_keys(str(path))
        deadline = time.monotonic() + WAIT_S
        while not (said := self.text("#message")).startswith(path.name) and time.monotonic() < deadline:
            time.sleep(0.02)
        return said

    def fresh(self) -> None:
        """The page as another browser sees it, that knows nothing."""
        self.chrome.execute_script("localStorage.clear()")  # type: ignore[no-untyped-call]
        self.chrome.get(self.page.as_uri())


@pytest.fixture
def open_page(chromium: Chrome, tmp_path: Path) -> Iterator[Callable[..., Desk]]:
    """`open_page(labelled)`. At the end the console must be empty: no error, and nothing that the page's policy refused."""

    def open_it(labelled: Any, **options: Any) -> Desk:
        page = write_review(labelled.run_file, labelled.environment, tmp_path / "page.html", **options)
        return Desk(chromium, page, tmp_path / "downloads")

    chromium.get("about:blank")
    chromium.get_log("browser")  # type: ignore[no-untyped-call]
    yield open_it
    assert chromium.get_log("browser") == []  # type: ignore[no-untyped-call]
    chromium.execute_script("localStorage.clear()")  # type: ignore[no-untyped-call]


def test_two_labels_are_corrected_one_by_mouse_and_one_by_keyboard_and_saved(open_page: Any, elements: Any) -> None:
    desk = open_page(elements)
    assert (desk.text("#total"), desk.text("#done"), desk.state(1)) == ("30", "0", "to do")
    desk.choose(1, "wood")
    assert desk.state(1) == "→ wood"
    desk.press(Keys.ARROW_RIGHT, "1")  # on to the second image: fire, the first of the sorted classes
    assert desk.state(2) == "→ fire"
    assert desk.current() == "item-3"
    desk.press(Keys.ENTER, "0")
    assert (desk.state(3), desk.state(4)) == ("✓ right", "→ none of these")
    assert desk.text("#count") == "4 of 30 looked at · 25 % of the labels right"

    path = desk.save()
    assert path.name == "elements-corrections.json"
    assert "4 images, 3 of them corrected" in desk.text("#message")
    content = json.loads(path.read_text())
    assert (content["format"], content["run"], content["dataset"]) == ("pocketvlm-corrections/1", elements.run, elements.dataset)
    found = read_corrections(path, ["fire", "land", "metal", "water", "wood"])
    least_certain = sorted(elements.rows.values(), key=lambda row: row.teacher_confidence)
    assert [found.label(row.sha256) for row in least_certain[:5]] == ["wood", "fire", "fire", NONE, None]
    assert [item.was for item in found] == ["water", "land", "fire", "wood"]


def test_a_decision_can_be_taken_back(open_page: Any, elements: Any) -> None:
    desk = open_page(elements)
    assert not desk.find("#undo").is_enabled()
    desk.choose(1, "wood")
    desk.choose(1, "metal")
    desk.press("u")
    assert desk.state(1) == "→ wood"
    desk.find("#undo").click()
    assert desk.state(1) == "to do"
    assert (desk.text("#done"), desk.find("#save").is_enabled(), desk.find("#undo").is_enabled()) == ("0", False, False)


def test_closing_the_page_loses_nothing(open_page: Any, elements: Any) -> None:
    desk = open_page(elements)
    desk.choose(2, "metal")
    desk.find("#item-2 input").send_keys("the tank 🔥")
    desk.chrome.get("about:blank")
    desk.chrome.get(desk.page.as_uri())
    assert (desk.state(2), desk.text("#done")) == ("→ metal", "1")
    assert desk.find("#item-2 input").get_attribute("value") == "the tank 🔥"
    assert desk.current() == "item-1"
    (item,) = json.loads(desk.save().read_text(encoding="utf-8"))["items"]
    assert (item["label"], item["was"], item["note"]) == ("metal", "land", "the tank 🔥")


def test_a_saved_file_is_read_back_by_a_browser_that_knows_nothing(open_page: Any, elements: Any, tmp_path: Path) -> None:
    desk = open_page(elements)
    desk.choose(1, "wood")
    desk.choose(5, "")
    path = desk.save()
    content = json.loads(path.read_text())
    content["items"] += [{**content["items"][0], "sha256": "ab" * 32}, {**content["items"][0], "label": "quartz"}, None]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    desk.fresh()
    assert desk.text("#done") == "0"
    said = desk.load(other)
    assert said == "other.json: 3 images, 1 of them in another sample; 2 have no label of this run and were left out."
    assert (desk.state(1), desk.state(5), desk.text("#done")) == ("→ wood", "→ none of these", "2")
    path.unlink()
    assert len(json.loads(desk.save().read_text())["items"]) == 3


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"format": "pocketvlm-corrections/2", "items": []}'])
def test_a_file_of_another_kind_changes_nothing(open_page: Any, elements: Any, tmp_path: Path, content: str) -> None:
    desk = open_page(elements, images=5)
    desk.choose(1, "wood")
    (tmp_path / "odd.json").write_text(content)
    assert desk.load(tmp_path / "odd.json").startswith("odd.json cannot be read: ")
    assert (desk.text("#done"), desk.state(1)) == ("1", "→ wood")


def test_filters_show_what_they_say_and_keep_what_was_just_decided(open_page: Any, elements: Any) -> None:
    desk = open_page(elements, images=10)
    desk.choose(1, "wood")
    desk.choose(2, "land")
    desk.find("#filter-corrected").click()
    assert desk.shown() == ["item-1"]
    desk.find("#filter-right").click()
    assert desk.shown() == ["item-2"]
    desk.find("#filter-todo").click()
    assert desk.shown() == [f"item-{number}" for number in range(3, 11)]
    desk.press(" ")
    assert "item-3" in desk.shown()
    Select(desk.find("#class")).select_by_visible_text("metal (2)")
    assert desk.shown() == ["item-5", "item-10"]
    desk.find("#filter-corrected").click()
    assert desk.shown() == []
    assert desk.find("#empty").is_displayed()


def test_keys_do_what_the_focus_means_and_not_what_a_note_says(open_page: Any, elements: Any) -> None:
    desk = open_page(elements, images=10)
    desk.press("n", "1", "u", " ", "0", Keys.ENTER)
    assert desk.find("#item-1 input").get_attribute("value") == "1u 0"
    assert desk.text("#done") == "0"
    desk.press(Keys.ESCAPE, "z")
    assert desk.find("#zoom").is_displayed()
    desk.press("2")  # a key behind an open picture
    desk.press(Keys.ESCAPE)
    assert not desk.find("#zoom").is_displayed()
    assert desk.text("#done") == "0"
    desk.find('#item-1 [data-choice="metal"]').send_keys(Keys.ENTER)  # presses that button, and confirms nothing
    assert desk.state(1) == "→ metal"
    desk.press(Keys.ARROW_UP)
    assert desk.current() == "item-1"
    desk.press(*[Keys.ARROW_DOWN] * 12)
    assert desk.current() == "item-10"


def test_the_current_card_lies_below_the_bar(open_page: Any, elements: Any) -> None:
    desk = open_page(elements)
    desk.press(*[Keys.ENTER] * 9)
    bar, card = (desk.chrome.execute_script("return arguments[0].getBoundingClientRect().toJSON()", desk.find(selector))
                 for selector in ("#bar", "#item-10"))  # fmt: skip
    assert bar["top"] == 0
    assert bar["bottom"] <= card["top"] <= bar["bottom"] + 60


def test_hostile_texts_are_shown_and_do_nothing(open_page: Any, hostile: Any) -> None:
    desk = open_page(hostile)
    assert desk.chrome.title == "elements · PocketVLM review"
    assert desk.text("#total") == "20"
    least_certain = sorted(hostile.rows.values(), key=lambda row: row.teacher_confidence)
    for number, row in enumerate(least_certain, start=1):
        shown = desk.chrome.execute_script("return arguments[0].textContent", desk.find(f"#item-{number} .reason"))
        assert shown == row.teacher_reason
    links = [link.get_attribute("href") for link in desk.chrome.find_elements("css selector", ".origin a")]
    assert len(links) == 4
    assert all(link.startswith("https://images.invalid/") for link in links)
    desk.press(*"123456")
    found = read_corrections(desk.save(), list(hostile.run_file.run.task.classes))
    classes = list(hostile.run_file.run.task.classes)
    assert [found.label(row.sha256) for row in least_certain[:6]] == classes
    assert desk.chrome.title == "elements · PocketVLM review"


def test_with_more_than_nine_classes_letters_go_on(open_page: Any, make_labelled: Any, new_row: Any) -> None:
    classes = [f"class {chr(97 + place)} with a long name of its own, as catalogues have them" for place in range(15)]
    desk = open_page(make_labelled([new_row(number, classes[0]) for number in range(6)], classes))
    desk.find("#help summary").click()
    assert desk.text("#keys") == "1 to 9, or the letter on the button"
    desk.press("9", "q", "a")
    assert [desk.state(number) for number in (1, 2, 3)] == [f"→ {classes[place]}" for place in (8, 9, 14)]


@pytest.mark.parametrize("width_px", [390, 1120])
def test_nothing_is_wider_than_the_screen(open_page: Any, make_labelled: Any, new_row: Any, width_px: int) -> None:
    classes = ["a", "w" * 60, "dark dune and bright sand, partly covered by seasonal frost", *(f"class {n}" for n in range(12))]
    rows = [new_row(number, classes[number % 3], teacher_reason="r" * 400, source_id="s" * 300) for number in range(6)]
    desk = open_page(make_labelled(rows, classes))
    size = {"width": width_px, "height": 844, "deviceScaleFactor": 1, "mobile": width_px < 720}
    desk.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        desk.choose(1, classes[1])
        assert desk.chrome.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        wide = "return [...document.querySelectorAll('.item *')].filter(e => e.getBoundingClientRect().right > innerWidth).length"
        assert desk.chrome.execute_script(wide) == 0
    finally:
        desk.chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_everything_that_can_be_used_has_a_name_for_those_who_do_not_see_it(open_page: Any, elements: Any) -> None:
    desk = open_page(elements, images=5)
    nodes = desk.chrome.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    usable = [node for node in nodes if node.get("role", {}).get("value") in
              {"button", "textbox", "combobox", "link", "image", "progressbar", "article"}]  # fmt: skip
    assert len(usable) > 50
    unnamed = [node["role"]["value"] for node in usable if not node.get("name", {}).get("value") and not node.get("ignored")]
    assert unnamed == []


def test_five_hundred_images_open_and_answer_at_once(open_page: Any, make_labelled: Any, new_row: Any) -> None:
    classes = [f"class {place}" for place in range(15)]
    rows = [new_row(number, classes[number % 15], teacher_reason="A reason of some length. " * 6) for number in range(520)]
    desk = open_page(make_labelled(rows, classes), images=500)
    assert desk.text("#total") == "500"
    desk.press(Keys.END)
    work = "for (const card of cards.slice(0, 20)) decide(card, null);"
    took_ms = desk.chrome.execute_script(f"const start = performance.now(); {work} return performance.now() - start")
    assert desk.text("#done") == "20"
    assert took_ms / 20 < 100


def test_fields_are_corrected_in_a_form_that_refuses_what_they_may_not_be(open_page: Any, plates: Any) -> None:
    desk = open_page(plates)
    assert desk.text("#item-1 h2").endswith("is_food: 1 · title: apple 0 · items: apple, <b> · hot: false")

    def write(number: int, name: str, text: str) -> None:
        field = desk.find(f'#item-{number} [aria-label="{name} of image {number}"]')
        field.clear()
        field.send_keys(text)

    write(1, "title", "two apples and a half")
    desk.choose(1, "written")
    assert (desk.state(1), desk.text("#item-1 .wrong")) == ("to do", "title: 21 characters, and 20 are allowed")
    write(1, "title", "two apples")
    write(1, "items", "apple\n\n apple pie ")
    Select(desk.find('#item-1 [aria-label="hot of image 1"]')).select_by_value("true")
    desk.choose(1, "written")
    assert desk.state(1) == "→ is_food: 1 · title: two apples · items: apple, apple pie · hot: true"
    desk.choose(2, "written")
    assert desk.state(2) == "✓ right", "what was not changed is confirmed"
    desk.press(Keys.ARROW_RIGHT, Keys.ENTER, "0")
    assert (desk.state(3), desk.state(4)) == ("✓ right", "→ none of these")

    path = desk.save()
    fields = plates.run_file.run.task.fields
    found = read_corrections(path, [], fields)
    shas = [row.sha256 for row in sorted(plates.rows.values(), key=lambda row: row.teacher_confidence)]
    assert found.label(shas[0]) == '{"is_food":1,"title":"two apples","items":["apple","apple pie"],"hot":true}'
    assert [found.label(sha256) for sha256 in shas[1:5]] == [plates.rows[shas[1]].label, plates.rows[shas[2]].label, NONE, None]

    content = json.loads(path.read_text())
    content["items"][1]["label"] = "{}"
    path.write_text(json.dumps(content))
    desk.fresh()
    assert "1 have no label of this run" in desk.load(path)
    assert desk.state(1).startswith("→ is_food: 1 · title: two apples")
    assert desk.find('#item-1 [aria-label="title of image 1"]').get_attribute("value") == "two apples"
