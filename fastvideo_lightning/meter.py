"""How many bytes of weights this process has read, for whoever shows it."""

from threading import Lock


class ReadMeter:
    """Counts bytes; weights are read by several threads at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._size_bytes = 0

    def add(self, size_bytes: int) -> None:
        """Count bytes that were read."""
        with self._lock:
            self._size_bytes += size_bytes

    def size(self) -> int:
        """Return the bytes that were read since the process began."""
        return self._size_bytes


READ = ReadMeter()
