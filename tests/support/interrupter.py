"""Ctrl-C at a chosen line of the engine."""

import sys
from pathlib import Path

import fastvideo_lightning.offload as offload

ENGINE_FILES = str(Path(offload.__file__).parent)


class Interrupter:
    """Raises KeyboardInterrupt before the n-th line of the engine that is run inside of it."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __enter__(self) -> "Interrupter":
        sys.settrace(self._enter_function)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _enter_function(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(ENGINE_FILES):
            return None
        return self._see_line

    def _see_line(self, frame, event, argument):
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self._see_line
