"""`pocketvlm demo`: the page on a port of this machine. Nothing goes out: the browser is told so too."""

from __future__ import annotations

import importlib.util
import ipaddress
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pocketvlm.demo.base import make_base
from pocketvlm.demo.columns import open_columns
from pocketvlm.demo.page import build_page, examples_folder
from pocketvlm.environment import Environment
from pocketvlm.errors import UserError
from pocketvlm.interrupt import temporary_folder
from pocketvlm.llamacpp.toolchain import find_toolchain
from pocketvlm.predict.images import MAX_PIXELS
from pocketvlm.predict.opened import ALL, open_release
from pocketvlm.progress import Progress
from pocketvlm.sources.images import strict_pillow

HOST, PORT = "127.0.0.1", 7860
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; "
    "connect-src 'self' data: blob:; frame-src 'none'; frame-ancestors 'none'; form-action 'self'; base-uri 'self'"
)
"""Gradio makes code at run time, so its scripts need leave for that; of other hosts, nothing may be loaded or told."""

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


def demo(
    name_or_folder: str, environment: Environment, *, version: str | None = None, type: str | None = None, host: str = HOST,
    port: int = PORT, base: bool = True, open_page: bool = False,
) -> int:  # fmt: skip
    """Serves the page until Ctrl-C or SIGTERM; returns the exit code. `port` 0: any free one.

    `type`: only this one; default: all of the release. Raises UserError where Gradio is not installed or the port is taken,
    and what `open_release` and `Model` raise.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the demo needs Gradio; install the extra: pip install 'pocketvlm[demo]'")
    toolchain, progress = find_toolchain(environment), Progress("demo")
    opened = open_release(name_or_folder, environment, version=version, types=[type] if type else ALL)
    maker = partial(make_base, opened, toolchain, environment, progress) if base else None
    with (
        _listening(host, port) as listener,
        _own_temporary_files(environment),
        open_columns(opened, toolchain, environment.thread_count(), maker) as columns,
        strict_pillow(MAX_PIXELS),
    ):
        app = make_app(build_page(opened, columns), examples_folder(opened), host)
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{listener.getsockname()[1]}"
        progress.line(f"{opened.release.name} {opened.release.version} is on {url} (Ctrl-C ends it)")
        if open_page:
            import webbrowser

            webbrowser.open(url)
        return _run(app, listener)


def _run(app: Any, listener: socket.socket) -> int:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
    with suppress(KeyboardInterrupt):  # raised when all is ended
        server.run(sockets=[listener])
    return 0


def make_app(blocks: Any, examples: Path, host: str) -> Any:
    """The page as an ASGI application that answers to this machine's names alone, unless `host` is another's."""
    import gradio as gr
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if _is_loopback(host):
        # A page elsewhere that points its own name at 127.0.0.1 is not answered.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost", "[::1]", host])
    app.add_middleware(_Policy)
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(
        app, blocks, path="/", theme=theme, css=Path(__file__).with_name("page.css").read_text(), allowed_paths=[str(examples)],
        footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, mcp_server=False, pwa=False,
        max_file_size="256mb",
    )  # fmt: skip


class _Policy:
    """Says in every answer what the browser may load: see POLICY."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        await self._app(scope, receive, with_policy)


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:  # the second of a port beyond 65535
        why = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: cannot listen there ({why}); choose another host or port") from error
    with listener:
        yield listener


@contextmanager
def _own_temporary_files(environment: Environment) -> Iterator[None]:
    """What is uploaded lies in a folder of this demo, and goes with it."""
    before = tempfile.tempdir
    with temporary_folder(environment.scratch, "demo-") as folder:
        tempfile.tempdir = str(folder.resolve())
        try:
            yield
        finally:
            tempfile.tempdir = before


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
