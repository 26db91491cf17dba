"""How much host memory this process may still take: what its cgroups and the system leave.

A container or a batch system limits memory by cgroups, which `MemAvailable` knows nothing of; each
group up to the root has a limit of its own. Pages of files that a group was charged for are given
back before anything is refused, so they count as free
(https://docs.kernel.org/admin-guide/cgroup-v2.html#memory).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from fastvideo_lightning.plan.machine import GIB

MARGIN_BYTES, MARGIN_SHARE = 3 * GIB, 0.1
"""What `auto` leaves: Python, libraries and the driver take up to 2 GiB on the way, and memory that
is locked cannot be taken back: a group that is full to its limit does not go on."""

_NO_LIMIT_V1 = 1 << 62


@dataclass(frozen=True)
class FreeMemory:
    """Host memory that is left, and what limits it.

    Attributes:
        size_bytes: How much may be taken.
        limit: In words, such as `the machine` or `the cgroup /job`.
    """

    size_bytes: int
    limit: str

    @property
    def budget_bytes(self) -> int:
        """What a budget of `auto` takes of it."""
        return budget_of(self.size_bytes)


def budget_of(size_bytes: int) -> int:
    """What a budget of `auto` takes of host memory that is free."""
    return max(size_bytes - max(MARGIN_BYTES, round(MARGIN_SHARE * size_bytes)), 0)


def find_free_memory(root: Path = Path("/")) -> FreeMemory:
    """Return the least of what the machine and every cgroup of this process leave.

    Args:
        root: Where `proc` and `sys` are.
    """
    found = [FreeMemory(psutil.virtual_memory().available, "the machine")]
    for version, mount, folder in _groups(root):
        left = (_left_by_v2 if version == 2 else _left_by_v1)(folder)
        if left is not None:
            name = "/" + str(folder.relative_to(mount)).removeprefix(".")
            found.append(FreeMemory(max(left, 0), f"the cgroup {name}"))
    return min(found, key=lambda free: free.size_bytes)


def find_all_memory(root: Path = Path("/")) -> int:
    """Return how much the machine has for this process, used or not: no more than its cgroups let.

    Args:
        root: Where `proc` and `sys` are.
    """
    limits = [
        (_limit_of_v2 if version == 2 else _limit_of_v1)(folder)
        for version, _, folder in _groups(root)
    ]
    return min([psutil.virtual_memory().total, *(limit for limit in limits if limit is not None)])


def _groups(root: Path) -> Iterator[tuple[int, Path, Path]]:
    """The groups that limit this process: version, where that is mounted, and folder."""
    for version, path in _memberships(root):
        mount = root / ("sys/fs/cgroup" if version == 2 else "sys/fs/cgroup/memory")
        for folder in _up_the_tree(mount, path):
            yield version, mount, folder


def _memberships(root: Path) -> Iterator[tuple[int, str]]:
    """The process's groups that account for memory: version, and path below the mount."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield 2, path
        elif "memory" in controllers.split(","):
            yield 1, path


def _up_the_tree(mount: Path, path: str) -> Iterator[Path]:
    """The folders of a group and of those around it; in a container the path may lead nowhere."""
    folder = mount / path.lstrip("/")
    while True:
        if folder.is_dir():
            yield folder
        if folder == mount or mount not in folder.parents:
            return
        folder = folder.parent


def _limit_of_v2(folder: Path) -> int | None:
    limits = [_number(folder / name) for name in ("memory.max", "memory.high")]
    return min((limit for limit in limits if limit is not None), default=None)


def _left_by_v2(folder: Path) -> int | None:
    limit, used = _limit_of_v2(folder), _number(folder / "memory.current")
    if limit is None or used is None:
        return None
    return limit - used + _file_pages(folder, "")


def _limit_of_v1(folder: Path) -> int | None:
    limit = _number(folder / "memory.limit_in_bytes")
    return None if limit is None or limit >= _NO_LIMIT_V1 else limit


def _left_by_v1(folder: Path) -> int | None:
    limit, used = _limit_of_v1(folder), _number(folder / "memory.usage_in_bytes")
    if limit is None or used is None:
        return None
    return limit - used + _file_pages(folder, "total_")


def _file_pages(folder: Path, prefix: str) -> int:
    """Bytes of files' pages that a group was charged for, and that can be given back."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    names = (f"{prefix}inactive_file ", f"{prefix}active_file ")
    return sum(int(line.split()[1]) for line in lines if line.startswith(names))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none, as in `max`."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
