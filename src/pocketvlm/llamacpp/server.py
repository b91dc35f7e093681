"""llama-server of the pinned build on one GGUF pair: the phone's runtime, asked with the exact prompt bytes.

Requests go to `/completion` with `multimodal_data`, not through a chat template. One slot, no prompt cache: with
several slots the batches, and with them the low bits, depend on timing, and equal runs would not give equal reports.
"""

from __future__ import annotations

import base64
import collections
import http.client
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pocketvlm.errors import ToolError
from pocketvlm.llamacpp.child import ends_with_us
from pocketvlm.llamacpp.toolchain import Toolchain

START_TIMEOUT_S = 120
REQUEST_TIMEOUT_S = 600
"""One request on a slow CPU with a large tile budget: minutes (29 s measured for 256M at 17 tiles, two cores)."""


@dataclass(frozen=True)
class Step:
    """One generated token."""

    token_id: int
    logprobs: dict[int, float]
    """Token id -> log-probability over the whole vocabulary (nats), before the grammar, for the most likely tokens."""
    piece: bytes = b""
    """What the token writes."""


@dataclass(frozen=True)
class Completion:
    """What the server answered."""

    text: str
    steps: list[Step]
    prompt_tokens: int
    """All tokens of the prompt, visual ones included."""
    prompt_ms: float
    answer_ms: float
    answer_tokens: int
    """Generated tokens, the end token included."""
    stopped: str
    """`eos`, `limit` or `word`."""


class LlamaServer:
    """A running llama-server; a context manager."""

    def __init__(
        self,
        toolchain: Toolchain,
        text: Path,
        mmproj: Path,
        *,
        media_marker: str,
        context_tokens: int = 4096,
        threads: int = 2,
    ) -> None:
        self._toolchain = toolchain
        self._arguments = [
            "--model", str(text), "--mmproj", str(mmproj), "--ctx-size", str(context_tokens), "--threads", str(threads),
            "--parallel", "1", "--no-ui", "--no-slots", "--offline", "--fit", "off", "--no-cache-prompt", "--cache-ram", "0",
            "--no-warmup", "--log-colors", "off",
        ]  # fmt: skip
        self._marker = media_marker
        self._lines: collections.deque[str] = collections.deque(maxlen=40)
        self._process: subprocess.Popen[str] | None = None
        self._connection: http.client.HTTPConnection | None = None

    def __enter__(self) -> Self:
        """Starts the server. Raises ToolError with its last lines when it ends or is not ready in time."""
        port = _free_port()
        command = [
            str(self._toolchain.program("llama-server")),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            *self._arguments,
        ]
        environment = {"PATH": os.defpath, "LLAMA_MEDIA_MARKER": self._marker}
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            preexec_fn=ends_with_us(),
            # Not in our group: Ctrl-C of a terminal goes to all of that, and a server that gets it while it answers sometimes
            # neither answers nor ends. We end it.
            process_group=0,
        )
        ready = threading.Event()
        threading.Thread(target=self._read_log, args=(self._process.stdout, ready), daemon=True).start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready.wait(0.05):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._stop()
                raise ToolError("llama-server did not start; its last lines:\n" + "\n".join(self._lines))
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_TIMEOUT_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection:
            self._connection.close()
        self._stop()

    def _read_log(self, lines: Iterable[str], ready: threading.Event) -> None:
        for line in lines:
            self._lines.append(line.rstrip())
            if "listening on http" in line:
                ready.set()

    def _stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def complete(
        self, prompt: str, image: bytes, *, grammar: str | None, max_new_tokens: int, top: int = 0
    ) -> Completion:
        """Greedy answer to one image (PNG or JPEG bytes). `top`: log-probabilities of that many tokens a step.

        Raises ToolError when the server refuses or dies.
        """
        reply = self.post("/completion", {
            "prompt": {"prompt_string": prompt, "multimodal_data": [base64.b64encode(image).decode()]},
            "n_predict": max_new_tokens, "temperature": 0.0, "samplers": ["temperature"], "n_probs": top, "cache_prompt": False,
            **({"grammar": grammar} if grammar else {}),
        })  # fmt: skip
        timings = reply["timings"]
        steps = [
            Step(item["id"], {other["id"]: other["logprob"] for other in item["top_logprobs"]}, bytes(item["bytes"]))
            for item in reply.get("completion_probabilities", [])
        ]
        return Completion(
            text=reply["content"], steps=steps, prompt_tokens=reply["tokens_evaluated"], prompt_ms=timings["prompt_ms"],
            answer_ms=timings["predicted_ms"], answer_tokens=reply["tokens_predicted"], stopped=reply["stop_type"],
        )  # fmt: skip

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, special tokens parsed, none added."""
        reply = self.post("/tokenize", {"content": text, "add_special": False, "parse_special": True})
        return [int(token) for token in reply["tokens"]]

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One JSON request. Raises ToolError."""
        assert self._connection is not None and self._process is not None
        try:
            self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            tail = "\n".join(self._lines)
            raise ToolError(f"llama-server went away during {path} ({error}); its last lines:\n{tail}") from error
        finally:
            # The server hangs up after 5 s without a question; a new connection costs 0.2 ms.
            self._connection.close()
        if response.status != 200:
            raise ToolError(
                f"llama-server refused {path} with {response.status}: {data[:500].decode(errors='replace')}"
            )
        result: dict[str, Any] = json.loads(data)
        return result


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
