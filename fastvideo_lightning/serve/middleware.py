"""The door of the page: which routes there are, which files may be read, which streams are open."""

import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_API = "/gradio_api"
# What the page itself asks for. Gradio has more: proxies, streams, recordings, an editor.
_ROUTES = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/(assets|static)/.+"
    rf"|{_API}/(startup-events|queue/join|queue/data|heartbeat/\w+)"
)
_FILE = f"{_API}/file="
_JOIN = f"{_API}/queue/join"
_VIDEOS = re.compile(r"/v1/videos(/\w+(/content)?)?")
_UPLOADS = re.compile(rf"{_API}/(upload|upload_progress)")
# The page itself sends some kB with a click.
_MAX_BODY_BYTES, _MAX_BODY_S = 1 << 20, 30.0
_MAX_UPLOAD_BYTES, _MAX_UPLOAD_S = 21 << 20, 300.0
_REASONS = {
    404: b"There is no such thing here.",
    408: b"The request took too long to arrive.",
    413: b"The request is too large.",
}


@dataclass(frozen=True)
class BodyLimit:
    """The most that may follow the head of a request.

    Attributes:
        size_bytes: Its size.
        seconds: How long it may take to arrive.
    """

    size_bytes: int
    seconds: float

    @classmethod
    def of(cls, path: str) -> Self:
        """The limit of a route."""
        if _UPLOADS.fullmatch(path) or path == "/v1/videos":
            return cls(_MAX_UPLOAD_BYTES, _MAX_UPLOAD_S)
        return cls(_MAX_BODY_BYTES, _MAX_BODY_S)


class _RefusedError(Exception):
    """A request is answered by a status and read no further."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Guard:
    """An ASGI application before Gradio that answers 404 to what the page has no use for.

    What is too large is answered by 413, what takes too long to arrive by 408.

    A file is read only if it lies in the output folder, links followed. What is sent with a click
    may name uploads alone: of what says that it is one, Gradio checks that it is; any other path it
    would open as it stands.

    Args:
        app: What is behind the door.
        folder: The output folder.
        takes_uploads: Whether the page has a field for an image.
    """

    def __init__(self, app: App, *, folder: Path, takes_uploads: bool) -> None:
        self._app, self._folder, self._takes_uploads = app, folder.resolve(), takes_uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer that there is no such thing."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        has_begun = False

        async def send_on(message: MutableMapping[str, Any]) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._pass_on(scope, _bounded(scope, receive), send_on)
        except _RefusedError as refused:
            if not has_begun:
                await _answer(refused.status, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.admits(scope["path"]):
            raise _RefusedError(404)
        if scope["path"] == _JOIN:
            body = await _read_body(receive)
            if not _names_uploads_alone(body):
                raise _RefusedError(404)
            receive = _with_body(body, receive)
        await self._app(scope, receive, send)

    def admits(self, path: str) -> bool:
        """Return whether the page has this route, and may read this file."""
        if path.startswith(_FILE):
            return self._may_read(path.removeprefix(_FILE))
        if ".." in unquote(path):
            return False
        if self._takes_uploads and _UPLOADS.fullmatch(path):
            return True
        return any(routes.fullmatch(path) for routes in (_ROUTES, _VIDEOS))

    def _may_read(self, name: str) -> bool:
        if "://" in name:
            return False
        try:
            return Path(name).resolve().is_relative_to(self._folder) and Path(name).is_absolute()
        except (OSError, ValueError):
            return False


async def _answer(status: int, send: Send) -> None:
    text = _REASONS[status]
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """Return what receives a body as long as it keeps to its limit; what comes behind it, always.

    Raises, where it is called:
        _RefusedError: If the body is larger, or not there in time.
    """
    limit = BodyLimit.of(scope["path"])
    until: float | None = None
    num_bytes, is_whole = 0, False

    async def receive_bounded() -> MutableMapping[str, Any]:
        nonlocal until, num_bytes, is_whole
        if is_whole:
            return await receive()
        now = asyncio.get_running_loop().time()
        until = now + limit.seconds if until is None else until
        try:
            message = await asyncio.wait_for(receive(), until - now)
        except TimeoutError:
            raise _RefusedError(408) from None
        num_bytes += len(message.get("body", b""))
        if num_bytes > limit.size_bytes:
            raise _RefusedError(413)
        is_whole = message["type"] != "http.request" or not message.get("more_body")
        return message

    return receive_bounded


async def _read_body(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(pieces)


def _with_body(body: bytes, receive: Receive) -> Receive:
    """Return what gives the body that was read, and then whatever follows it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return receive_again


def _names_uploads_alone(body: bytes) -> bool:
    """Whether every path in a request is said to be an upload, and none is at another server."""
    strangers = []

    def look(value: dict[str, Any]) -> dict[str, Any]:
        if not _is_upload(value):
            strangers.append(value)
        return value

    try:
        json.loads(body, object_hook=look)
    except (ValueError, RecursionError):
        return False
    return not strangers


def _is_upload(value: dict[str, Any]) -> bool:
    """Whether an object says that it is one, or names no file."""
    path, meta = value.get("path"), value.get("meta")
    is_said = isinstance(meta, dict) and meta.get("_type") == "gradio.FileData"
    return path is None or (is_said and isinstance(path, str) and "://" not in path)


_STREAM = "/gradio_api/queue/data"


class Streams:
    """Counts the open streams, so that the end of the page waits until everybody was told of it.

    Gradio ends no stream by itself when it closes, and then waits seconds for them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_open = 0

    def wait_closed(self, *, timeout_s: float) -> None:
        """Wait until there is none, or until the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_open == 0, timeout_s)

    def count(self, change: int) -> None:
        """Note that one was opened (1) or closed (-1)."""
        with self._changed:
            self._num_open += change
            self._changed.notify_all()


class CountStreams:
    """An ASGI application before Gradio that counts the streams while they are open.

    Args:
        app: What is behind it.
        streams: Where they are counted.
    """

    def __init__(self, app: App, *, streams: Streams) -> None:
        self._app, self._streams = app, streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"] != _STREAM:
            await self._app(scope, receive, send)
            return
        self._streams.count(1)
        try:
            await self._app(scope, receive, send)
        finally:
            self._streams.count(-1)
