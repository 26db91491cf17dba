"""How long a connection may be without a whole request, and how much of one it may hold."""

import asyncio
from typing import TYPE_CHECKING, Any

from fastvideo_lightning.serve.middleware import BodyLimit

if TYPE_CHECKING:
    import uvicorn

_MAX_HEAD_BYTES, _MAX_HEAD_S = 64 << 10, 30.0
_LOOK_EVERY_S = 2.0


def bound_connections(config: "uvicorn.Config") -> None:
    """Have a server end connections whose request does not come to its end.

    What has no head yet, or half a one, the `Guard` never sees; nor does it see the rest of a
    request that is answered already. The server itself waits for both without end.

    Args:
        config: The server's, which is asked for each new connection.
    """
    config.http_protocol_class = _bounded(config.http_protocol_class)


def _bounded(protocol: Any) -> type[asyncio.Protocol]:
    class BoundedConnection(protocol):  # type: ignore[misc]
        """A connection of uvicorn's that is closed where nothing whole comes of it."""

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._next_look: asyncio.TimerHandle | None = None
            self._waits_for: object = None
            self._since_s = self.loop.time()
            self._head_bytes = 0
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._next_look is not None:
                self._next_look.cancel()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            is_body = before is not None and before.more_body
            super().data_received(data)
            is_head = self.cycle is before and not is_body
            self._head_bytes = self._head_bytes + len(data) if is_head else 0
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.transport.abort()

        def _look(self) -> None:
            """Close it where the same has been waited for too long."""
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            waits_for, seconds = self._find_missing()
            if waits_for != self._waits_for:
                self._waits_for, self._since_s = waits_for, self.loop.time()
            elif waits_for is not None and self.loop.time() - self._since_s > seconds:
                self.transport.abort()
                return
            self._next_look = self.loop.call_later(_LOOK_EVERY_S, self._look)

        def _find_missing(self) -> tuple[object, float]:
            """What is to come from the other side, and how long it may take; None: nothing."""
            cycle = self.cycle
            if cycle is None or cycle.response_complete:
                return ("head", id(cycle)), _MAX_HEAD_S
            if cycle.more_body:  # some more than the Guard allows, which answers
                return ("body", id(cycle)), BodyLimit.of(cycle.scope["path"]).seconds + 5
            return None, 0.0

    return BoundedConnection
