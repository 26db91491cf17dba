"""The door of the page: which routes there are, and which files may be read through them."""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
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
_UPLOADS = re.compile(rf"{_API}/(upload|upload_progress)")


class Guard:
    """An ASGI application before Gradio that answers 404 to what the page has no use for.

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
        if scope["type"] == "http" and self.admits(scope["path"]):
            if scope["path"] != _JOIN:
                await self._app(scope, receive, send)
                return
            body = await _read_body(receive)
            if _names_uploads_alone(body):
                await self._app(scope, _with_body(body, receive), send)
                return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        text = b"There is no such thing here."
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(text))]
        await send({"type": "http.response.start", "status": 404, "headers": headers})
        await send({"type": "http.response.body", "body": text})

    def admits(self, path: str) -> bool:
        """Return whether the page has this route, and may read this file."""
        if path.startswith(_FILE):
            return self._may_read(path.removeprefix(_FILE))
        if ".." in unquote(path):
            return False
        if self._takes_uploads and _UPLOADS.fullmatch(path):
            return True
        return _ROUTES.fullmatch(path) is not None

    def _may_read(self, name: str) -> bool:
        if "://" in name:
            return False
        try:
            return Path(name).resolve().is_relative_to(self._folder) and Path(name).is_absolute()
        except (OSError, ValueError):
            return False


async def _read_body(receive: Receive) -> bytes:
    body, message = b"", await receive()
    while message["type"] == "http.request":
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
        message = await receive()
    return body


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
