"""The file of a report: a picture, a page or plain values, by its ending."""

import errno
import json
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from fastvideo_lightning.output.files import whole_or_nothing
from fastvideo_lightning.report.timeline import Timeline

ENDINGS = (".html", ".png", ".json")


def check_report_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a report that can be written, before any work is done.

    Raises:
        ValueError: If it has another ending, or nothing is installed to draw with.
        OSError: If it cannot be written there.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"A report must end in {', '.join(ENDINGS)}, got {str(path)!r}. "
            "Pass one such as report.html."
        )
    if path.suffix.lower() != ".json" and find_spec("matplotlib") is None:
        raise ValueError(
            f"{path.name} needs matplotlib, which is not installed. "
            'Install it with `pip install "fastvideo-lightning[report]"`, or pass report.json.'
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is in its place")
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        raise _explain(path, error) from error
    return path


def write_report(timeline: Timeline, path: str | os.PathLike[str]) -> Path:
    """Write a report, whole or not at all, and return its path.

    Raises:
        ValueError, OSError: As `check_report_path`.
    """
    path = check_report_path(path)
    kind = path.suffix.lower()
    if kind == ".json":
        content = json.dumps(timeline.to_dict(), indent=1).encode() + b"\n"
    elif kind == ".png":
        from fastvideo_lightning.report.draw import draw_png

        content = draw_png(timeline)
    else:
        from fastvideo_lightning.report.page import make_page

        content = make_page(timeline).encode()
    try:
        with whole_or_nothing(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise _explain(path, error) from error
    return path


def _explain(path: Path, error: OSError | ValueError) -> OSError | ValueError:
    reason = getattr(error, "strerror", None) or str(error)
    kind = type(error) if isinstance(error, OSError) else ValueError
    return kind(
        f"The report {str(path)!r} cannot be written: {reason}. "
        "Pass a file in a folder that you may write to, such as report.html."
    )
