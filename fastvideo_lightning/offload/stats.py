"""OffloadStats: what an engine has done."""

from dataclasses import dataclass


@dataclass
class OffloadStats:
    """What an engine has done since it was made.

    Attributes:
        copies: units copied to the device.
        bytes_copied: bytes of these copies.
        misses: waits for a unit that nobody had prefetched.
        passes: calls of models with streamed blocks.
    """

    copies: int = 0
    bytes_copied: int = 0
    misses: int = 0
    passes: int = 0
