"""OwnEnd: how this process ends, as far as it can tell while its `atexit` handlers run.

Nobody is told what a `SystemExit` or an uncaught exception carries; that there was one shows in the
outermost call of the main thread, which has not come to its return then.
"""

import dis
import os
import sys
from types import FrameType
from typing import NoReturn

import torch.distributed as dist


class OwnEnd:
    """Notes what the process gives to `sys.exit`; to be made in the main thread.

    Attributes:
        exit_codes: What `sys.exit` was given so far.
    """

    def __init__(self) -> None:
        self._exit = sys.exit
        self._outermost = _find_outermost_call()
        self.exit_codes: list[object] = []

    def watch(self) -> None:
        """Begin to note."""
        sys.exit = self._on_exit

    def find_code(self) -> int | None:
        """The code by which the main thread has given up, 1 where only that is known, or None."""
        last = self._outermost
        if dis.opname[last.f_code.co_code[last.f_lasti]].startswith("RETURN_"):
            return None
        if not self.exit_codes:
            return 1
        code = self.exit_codes[-1]
        return (code & 0xFF if isinstance(code, int) else int(code is not None)) or None

    def _on_exit(self, code: object = None, /) -> NoReturn:
        self.exit_codes.append(code)
        self._exit(code)  # type: ignore[arg-type]


def leave_at_once(code: int) -> None:
    """End the process where a group of NCCL is open that nobody is to wait for.

    Args:
        code: The exit code.
    """
    if dist.is_initialized() and dist.get_backend() == "nccl":
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _find_outermost_call() -> FrameType:
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
    return frame
