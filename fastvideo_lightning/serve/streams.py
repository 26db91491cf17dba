"""The event streams that are open: what a page listens to while its video is made."""

import threading

from fastvideo_lightning.serve.middleware import App, Receive, Scope, Send

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
