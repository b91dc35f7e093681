"""The demo of the released digits, and a browser with a camera that shows a test picture."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

from pocketvlm.environment import read_environment
from pocketvlm.llamacpp.toolchain import find_toolchain

from ..conftest import Place

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1120,1000",
         "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # fmt: skip
START_S = 300
"""The base is converted first: seconds on a quiet machine."""


@dataclass
class Demo:
    """A running `pocketvlm demo`."""

    url: str
    process: subprocess.Popen[str]
    scratch: Path
    said: list[str]

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="session")
def start_demo(digits: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Demo]]:
    """`start_demo(*arguments)`: a demo on a free port, with the cache that all of them share."""
    folder = tmp_path_factory.mktemp("demo")
    running: list[Demo] = []

    def start(*arguments: str) -> Demo:
        command, environment = digits.command("demo", "digits", "--port", "0", *arguments)
        scratch = folder / f"scratch-{len(running)}"
        places = {"POCKETVLM_CACHE": str(folder / "cache"), "POCKETVLM_SCRATCH": str(scratch),
                  "LLAMA_CPP_HOME": str(find_toolchain(read_environment()).home)}  # fmt: skip
        process = subprocess.Popen(command, env={**environment, **places}, cwd=folder, text=True, stderr=subprocess.PIPE)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        demo = Demo("", process, scratch, [])
        running.append(demo)
        deadline = time.monotonic() + START_S
        while not demo.url:
            line = lines.get(timeout=max(0.1, deadline - time.monotonic()))
            assert line is not None, "".join(demo.said)
            demo.said.append(line)
            demo.url = line.partition(" is on ")[2].partition(" ")[0]
        return demo

    yield start
    for demo in running:
        if demo.process.poll() is None:
            demo.stop()
        assert demo.process.stderr is not None
        demo.process.stderr.close()


def _read(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        lines.put(line)
    lines.put(None)


@pytest.fixture(scope="session")
def demo(start_demo: Callable[..., Demo]) -> Demo:
    """All types and the base."""
    return start_demo()


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """One browser; it logs its console and what it asks of the network."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("chromium and chromedriver are not on PATH (Debian: chromium chromium-driver)")
    options = Options()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium') / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = Chrome(options=options, service=Service(executable_path=driver, env={**os.environ, "NO_PROXY": "127.0.0.1"}))
    try:
        yield chrome
    finally:
        chrome.quit()
