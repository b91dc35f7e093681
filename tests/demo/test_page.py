"""The page as a person uses it, in a real Chromium: upload, camera, example, threshold; and that nothing leaves the machine."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

pytestmark = [pytest.mark.llamacpp, pytest.mark.chain]
WAIT_S = 60
MODELS = ["iq4_nl", "q4_0", "q8_0", "base"]


class Page:
    """The open page and what a person does there."""

    def __init__(self, chrome: Chrome, url: str, width_px: int = 1120) -> None:
        self.chrome, self.url = chrome, url
        size = {"width": width_px, "height": 1000, "deviceScaleFactor": 1, "mobile": width_px < 720}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        chrome.get(url)
        self.wait(lambda: self.all("#pv-photo input[type=file]"))

    def all(self, selector: str) -> list[Any]:
        return self.chrome.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        return [element.text for element in self.all(selector)]

    def wait(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                if found := condition():
                    return found
            except StaleElementReferenceException:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not in {WAIT_S} s: {self.chrome.find_element('css selector', 'body').text}")

    def upload(self, path: Path) -> None:
        self.all("#pv-photo input[type=file]")[0].send_keys(str(path))

    def press(self, selector: str) -> None:
        """The first of these that can be seen."""

        def click() -> bool:
            shown = [element for element in self.all(selector) if element.is_displayed()]
            if shown:
                shown[0].click()
            return bool(shown)

        self.wait(click)

    def answers(self) -> dict[str, str]:
        """Model -> what its card shows, when all have answered."""
        self.wait(lambda: len(self.all(".pv-card .pv-confidence")) == len(MODELS))
        return {card.get_attribute("data-model"): card.text for card in self.all(".pv-card")}

    def requests(self) -> list[str]:
        """What this page asked for since the last time."""
        asked = (json.loads(line["message"])["message"] for line in self.chrome.get_log("performance"))  # type: ignore[no-untyped-call]
        sent = (message["params"] for message in asked if message["method"] == "Network.requestWillBeSent")
        return [one["request"]["url"] for one in sent if one["documentURL"].startswith(self.url)]


@pytest.fixture
def page(demo: Any, chromium: Chrome) -> Iterator[Page]:
    """At the end: nothing was asked of another host, and the browser refused and missed nothing."""
    chromium.get("about:blank")
    for log in ("browser", "performance"):
        chromium.get_log(log)  # type: ignore[no-untyped-call]
    opened = Page(chromium, demo.url)
    yield opened
    assert [url for url in opened.requests() if not url.startswith((demo.url, "data:", "blob:"))] == []
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def golden(digits: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The first golden image and what is known of it."""
    folder = tmp_path_factory.mktemp("pulled")
    assert digits.pocketvlm("pull", "digits", "--types", "q8_0", "--to", str(folder)).returncode == 0
    row = json.loads((folder / "golden/golden.json").read_text())["images"][0]
    return {"path": folder / "golden" / row["file"], **row}


def test_an_uploaded_picture_is_answered_by_every_type_and_the_base_side_by_side(page: Page, golden: dict[str, Any]) -> None:
    assert page.texts("#pv-head h1") == ["digits"]
    page.upload(golden["path"])
    answers = page.answers()
    assert list(answers) == MODELS
    for name in MODELS[:3]:
        assert golden["types"][name]["answer"] in answers[name].splitlines()
        assert "% right when measured" in answers[name]
    assert "not trained for this" in answers["base"]
    for text in answers.values():
        assert "confidence" in text
        assert text.rstrip().endswith("ms")
    seen = page.all(".pv-seen img")[0]
    assert seen.get_property("naturalWidth") == seen.get_property("naturalHeight") == 32
    assert page.texts(".pv-seen figcaption") == ["What the models see, on the device's canvas: 32 by 32 px"]


def test_a_large_photograph_is_shown_as_the_models_see_it(page: Page, tmp_path: Path) -> None:
    Image.new("RGB", (1200, 600), (250, 250, 250)).save(tmp_path / "wide.jpg")
    page.upload(tmp_path / "wide.jpg")
    page.answers()
    corner = page.chrome.execute_script("""
        const image = document.querySelector('.pv-seen img'), canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
        const pen = canvas.getContext('2d'); pen.drawImage(image, 0, 0);
        return [canvas.width, ...pen.getImageData(16, 2, 1, 1).data, ...pen.getImageData(16, 16, 1, 1).data]""")
    assert corner[:4] == [32, 0, 0, 0]  # the border of the letterbox
    assert min(corner[5:8]) > 240


def test_above_the_chosen_threshold_nothing_is_shown_as_sure(page: Page, golden: dict[str, Any]) -> None:
    page.upload(golden["path"])
    page.answers()
    field = page.all("#pv-threshold input[type=number]")[0]
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys("1", Keys.ENTER)
    page.wait(lambda: page.texts(".pv-answer") == ["?"] * 4)
    assert f"would say {golden['types']['q8_0']['answer']}" in page.answers()["q8_0"]


def test_an_example_and_the_camera_are_answered_too(page: Page) -> None:
    page.press("#pv-examples img")
    page.answers()
    page.press('#pv-photo [aria-label="Clear"], #pv-photo [aria-label="Remove Image"]')
    page.wait(lambda: "Take or upload a picture" in "".join(page.texts("#pv-results")))
    page.press('#pv-photo [aria-label="Capture from camera"]')
    page.press("#pv-photo button:not([aria-label])")  # it asks for leave to use the camera
    page.press('#pv-photo button[aria-label="capture photo"]')
    page.answers()
    seen = page.all(".pv-seen img")[0]
    assert seen.get_property("naturalWidth") == 32


def test_a_file_that_is_no_picture_says_so(page: Page, tmp_path: Path) -> None:
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n1234")
    page.upload(tmp_path / "damaged.png")
    said = page.wait(lambda: page.texts(".pv-problem"))
    assert said == ["This picture cannot be used: starts as PNG, but its header cannot be read."]


@pytest.mark.parametrize("width_px", [390, 1120])
def test_nothing_is_wider_than_the_screen(demo: Any, chromium: Chrome, golden: dict[str, Any], width_px: int) -> None:
    page = Page(chromium, demo.url, width_px)
    page.upload(golden["path"])
    page.answers()
    assert chromium.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    parts = "[...document.querySelectorAll('.pv-card, .pv-seen, #pv-threshold')]"
    assert chromium.execute_script(f"return {parts}.every(part => part.getBoundingClientRect().right <= innerWidth)")


def get(url: str, **headers: str) -> tuple[int, http.client.HTTPMessage]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers


def test_the_browser_is_told_to_load_nothing_from_elsewhere(demo: Any) -> None:
    status, headers = get(demo.url)
    assert status == 200
    assert "default-src 'self'" in str(headers["content-security-policy"])
    assert "http:" not in str(headers["content-security-policy"])


def test_another_name_for_this_machine_is_not_answered(demo: Any) -> None:
    assert get(demo.url, Host="pictures.example:80")[0] == 400


def test_files_of_this_machine_are_not_served(demo: Any, digits: Any) -> None:
    for path in (digits.folder / "run.yaml", Path("/etc/hostname")):
        assert get(f"{demo.url}/gradio_api/file={path}")[0] in (403, 404)


def test_a_picture_is_a_file_that_was_uploaded_and_no_other(demo: Any, digits: Any) -> None:
    """Asked by its API, as no browser would: the path of a file that is here must not become a picture."""
    picture = digits.folder / "mine.png"
    Image.new("RGB", (8, 8)).save(picture)
    photo = {"path": str(picture), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [photo, 0.5], "fn_index": 0, "session_hash": "test"}
    address, kind = f"{demo.url}/gradio_api/queue/join", {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(address, json.dumps(body).encode(), kind)) as answer:
        assert "event_id" in json.load(answer)
    with urllib.request.urlopen(f"{demo.url}/gradio_api/queue/data?session_hash=test", timeout=20) as answer:
        said = b"".join(iter(answer.readline, b"")).decode()
    assert "data:image/png" not in said
    assert '"success":false' in said.replace(" ", "")


def test_sigterm_ends_it_with_its_servers_and_its_pictures(start_demo: Callable[..., Any]) -> None:
    demo = start_demo("--type", "q8_0", "--no-base")
    assert any(demo.scratch.iterdir())
    children = Path(f"/proc/{demo.process.pid}/task/{demo.process.pid}/children").read_text().split()
    assert children
    demo.stop()
    assert not any(demo.scratch.iterdir())
    deadline = time.monotonic() + WAIT_S
    while (left := [child for child in children if Path(f"/proc/{child}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)  # the kernel ends them
    assert left == []


def test_a_port_that_cannot_be_is_a_users_error(digits: Any) -> None:
    done = digits.pocketvlm("demo", "digits", "--no-base", "--port", "65536")
    assert done.returncode == 2
    assert "--port 65536: cannot listen there" in done.stderr
    assert "Traceback" not in done.stderr
