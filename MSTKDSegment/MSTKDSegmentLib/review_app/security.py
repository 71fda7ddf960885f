"""Who may talk to the server: an aiohttp middleware before pages, assets, own routes and the web socket."""

from __future__ import annotations

import hmac
import secrets
from typing import Any, Callable, Optional

from aiohttp import web

LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGES = ("/", "/index.html")
# What the page may load and where it may connect to: this server only. trame's client compiles its templates.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; font-src 'self' data:; connect-src 'self' ws: wss: blob:; "
    "worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` is reached from this computer only."""
    return host.strip("[]") in LOOPBACK


def new_token(host: str, wanted: bool = False) -> Optional[str]:
    """A token for a server that listens on `host`: always beyond this computer, here only where it is `wanted`."""
    return None if is_loopback(host) and not wanted else secrets.token_urlsafe(32)


def same(given: Optional[str], expected: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell how far they are."""
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode("utf-8"))


class Guard:
    """The rules of a server that listens on `host`; `token`: None where none is asked for."""

    def __init__(self, host: str, token: Optional[str]) -> None:
        self._local = is_loopback(host)
        self._token = token

        @web.middleware
        async def middleware(request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
            return await self._handle(request, handler)

        self.middleware = middleware

    async def _handle(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        answer = self._refusal(request)
        if answer is None:
            try:
                answer = await handler(request)
            except web.HTTPException as other:  # a redirection, or not found
                other.headers.update(HEADERS)
                raise
        if not answer.prepared:  # a web socket is
            answer.headers.update(HEADERS)
        return answer

    def _refusal(self, request: web.Request) -> Optional[web.StreamResponse]:
        if self._local and _name_of(request.host) not in LOOPBACK:  # a foreign name that leads here: DNS rebinding
            return web.Response(status=421, text="This server answers to 127.0.0.1 and localhost only.\n")
        origin = request.headers.get("Origin")
        if origin is not None and origin.partition("://")[2] != request.host:  # another site's page
            return web.Response(status=403, text="Requests from other sites are refused.\n")
        return None if self._token is None else self._without_token(request, self._token)

    def _without_token(self, request: web.Request, token: str) -> Optional[web.StreamResponse]:
        cookie = cookie_name(request)
        if same(request.query.get("token"), token):
            if request.path not in PAGES:
                return None
            # The token leaves the address bar and the history.
            answer = web.Response(status=302, headers={"Location": "/index.html"})
            answer.set_cookie(cookie, token, httponly=True, samesite="Strict", path="/", secure=request.secure)
            return answer
        if same(request.cookies.get(cookie), token):
            return None
        return web.Response(
            status=403, text="The token is missing or wrong. Open the address that `mstkd review` printed.\n"
        )


def cookie_name(request: web.Request) -> str:
    """Cookies are kept by host and not by port: two servers on one computer need two names."""
    place = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return f"mstkd_review_{place[1] if place else 0}"


def _name_of(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] or host
