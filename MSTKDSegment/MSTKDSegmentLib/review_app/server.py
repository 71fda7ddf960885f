"""Starts the application on an address, behind its `security.Guard`, and prints where it is."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Optional

from aiohttp import web
from trame.app import asynchronous

from .app import ReviewApp
from .security import Guard, is_loopback


@dataclass(frozen=True)
class Address:
    """Where to listen (port 0: any that is free); token: None where none is asked for."""

    host: str
    port: int
    token: Optional[str]
    open_browser: bool = True

    def url(self, port: int) -> str:
        """What a browser has to be given."""
        name = self.host.strip("[]")
        if name in ("0.0.0.0", "::", ""):  # all addresses
            name = socket.gethostname()
        shown = f"[{name}]" if ":" in name else name
        return f"http://{shown}:{port}/" + (f"?token={self.token}" if self.token else "")


def serve(app: ReviewApp, address: Address) -> None:
    """Serve `app` until it is ended (Ctrl-C, SIGTERM). Raises OSError where the address cannot be had."""
    guard = Guard(address.host, address.token)
    secret = secrets.token_urlsafe(24)

    async def session(request: web.Request) -> web.Response:
        """What trame's page asks first: where the socket is, and the word that opens it."""
        kind = "wss" if request.secure else "ws"
        return web.json_response({"sessionURL": f"{kind}://{request.host}/ws", "secret": secret})

    def bound(server: Any) -> None:
        server.app.middlewares.append(guard.middleware)
        server.app.router.add_post("/paraview/", session)

    def ready(**_: Any) -> None:
        url = address.url(app.server.port)
        print(f"Review: {url}", flush=True)
        if not is_loopback(address.host):
            print("Whoever has this address sees the patients. Press Ctrl-C to end.", flush=True)
        asynchronous.create_task(app.judging.tick())
        app.open_first()
        if address.open_browser and _has_screen():
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()

    app.ctrl.on_server_bind.add(bound)
    app.ctrl.on_server_ready.add(ready)
    app.ctrl.on_client_connected.add(lambda **_: app.judging.page_opened())
    app.ctrl.on_client_exited.add(lambda **_: app.judging.page_closed())
    try:
        # In one word: a secret may begin with a hyphen, which by itself would be an option.
        with _own_arguments([f"--authKey={secret}"]):
            app.server.start(
                host=address.host.strip("[]"), port=address.port, timeout=0, open_browser=False,
                show_connection_info=False,
            )  # fmt: skip
    finally:
        app.runs.close()


def _has_screen() -> bool:
    """Whether a browser can show itself; elsewhere a text browser would take the terminal."""
    return sys.platform in ("win32", "darwin") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@contextlib.contextmanager
def _own_arguments(arguments: list[str]) -> Iterator[None]:
    """trame reads the program's arguments itself, and ours mean something else to it."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before
