"""The server of the page: for this machine only, unless the user wants otherwise."""

import errno
import ipaddress
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pnf.app.page import CSS, Page, theme
from pnf.training.config import RunError

LARGEST_UPLOAD = 20 * 2**20
"""The most bytes of an uploaded file."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self' data: blob:; "
    "frame-ancestors 'self'"
)
"""What a browser may load: nothing from elsewhere, whatever the page asks for."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """Open a socket, before anything long begins. Port 0 is any that is free.

    Raises:
        RunError: the port is taken, or the address is none of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RunError(f"port {port} is taken: choose another with --port, or any free one with --port 0") from None
        raise RunError(f"--host {host} --port {port}: {error.strerror}") from None


def url(opened: socket.socket, host: str) -> str:
    """The address for a browser."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{opened.getsockname()[1]}"


@contextmanager
def application(page: Page, host: str) -> Iterator[FastAPI]:
    """The page as an ASGI application. What users upload, and the pictures they get, are removed in the end.

    A page for this machine only answers to its own names. So no other site can lead its visitors' browsers to it by a
    name that it lets point here.
    """
    with tempfile.TemporaryDirectory(prefix="pnf-app-") as folder, _environment(GRADIO_TEMP_DIR=folder):
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        gr.mount_gradio_app(
            app,
            page.blocks(Path(folder)),
            path="/",
            footer_links=[],
            run_history=False,
            show_error=False,
            max_file_size=LARGEST_UPLOAD,
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            pwa=False,
            theme=theme(),
            css=CSS,
        )
        app.add_middleware(_Policy)
        if is_loopback(host):
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]", host])
        yield app


def serve(app: FastAPI, opened: socket.socket) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    # uvicorn raises the signal that ended it once more, with the handler from before.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run([opened])
    finally:
        signal.signal(signal.SIGTERM, before)


class _Policy:
    """Adds the policy to each answer."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
            await send(message)

        await self.app(scope, receive, answer if scope["type"] == "http" else send)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
