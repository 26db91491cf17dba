"""StreamDriver: calls of the CUDA driver on streams that torch does not offer."""

from types import ModuleType

_AT_LEAST = 0  # CU_STREAM_WAIT_VALUE_GEQ; the value may wrap around


class StreamDriver:
    """Work for streams, given as handles; memory is given by its address.

    The device of the stream must be the current one.

    Raises:
        ImportError: there is no `cuda.bindings`; torch needs it, where it was built for CUDA.
    """

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver: ModuleType = driver

    def copy(self, to: int, source: int, num_bytes: int, stream: int) -> None:
        """Copy bytes, within a device, between devices, or from the host."""
        self._check("copy", self._driver.cuMemcpyAsync(to, source, num_bytes, stream))

    def write(self, address: int, value: int, stream: int) -> None:
        """Write an ``int32`` once all that the stream did before can be seen by every device."""
        self._check("write", self._driver.cuStreamWriteValue32(stream, address, value, 0))

    def wait(self, address: int, value: int, stream: int) -> None:
        """Let the stream wait until an ``int32`` is at least ``value``."""
        self._check("wait", self._driver.cuStreamWaitValue32(stream, address, value, _AT_LEAST))

    def _check(self, what: str, answer: tuple[int]) -> None:
        if answer[0] != 0:
            raise RuntimeError(f"The CUDA driver refused to {what}: {answer[0]}")
