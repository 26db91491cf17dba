"""What a further process of a node runs first: it is to end when the one that started it does.

Run by its path, by a Python that imports nothing more, with the id of the first process and the
command that takes the place of this one. So there is no moment at which a process that has lost
its parent stays: not while it imports, and not where its main thread waits in a library. On Linux
the system sends SIGTERM; elsewhere the guard sees it, see Note [Ends of ranks].
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Tie this process to its parent, then become the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    if os.getppid() != parent:  # it has gone already, and the system tells nobody of that
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
