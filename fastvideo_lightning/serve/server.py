"""Starting the page, and ending it."""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock, Timeout

from fastvideo_lightning.serve.connections import bound_connections
from fastvideo_lightning.serve.middleware import CountStreams, Guard, Streams
from fastvideo_lightning.serve.session import LOOK_EVERY_S
from fastvideo_lightning.serve.studio import Studio
from fastvideo_lightning.serve.style import CSS, make_theme

_FOLDER, _LOCK = ".page-", ".lock"
LOCAL_HOSTS = ("127.0.0.1", "localhost")
_MAX_UPLOAD = "20mb"
_TELL_S = LOOK_EVERY_S + 1.2  # until every page has shown that the server was stopped


@contextmanager
def serving(studio: Studio, *, host: str = "127.0.0.1", port: int = 7860) -> Iterator[str]:
    """Serve a studio's page inside the context; yields its address.

    Uploaded images, and nothing else, are kept in a folder inside of the output folder that goes
    with the context. Only files of the output folder can be read through the page.

    Args:
        studio: What makes the videos; it is closed at the end.
        host: Address to bind to.
        port: Port to bind to.

    Raises:
        OSError: If the port is taken or the address is none of this machine's.
    """
    try:
        studio.start()
        with upload_folder(studio.output_path.resolve()) as folder:
            # Gradio reads these when it builds a page; it would use the working directory else.
            os.environ["GRADIO_TEMP_DIR"] = os.environ["GRADIO_EXAMPLES_CACHE"] = folder
            os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
            from fastvideo_lightning.serve.page import make_page

            page = make_page(studio)
            streams = Streams()
            page.queue(max_size=None, default_concurrency_limit=None, api_open=False)
            try:
                _, address, _ = page.launch(
                    server_name=host,
                    server_port=port,
                    **_launch_options(studio, host, streams, Path(folder)),
                )
                bound_connections(page.server.config)
                yield address
            finally:
                studio.stop()
                streams.wait_closed(timeout_s=_TELL_S)
                page.close(verbose=False)
    finally:
        studio.close()


@contextmanager
def upload_folder(parent: Path) -> Iterator[str]:
    """A folder that goes with the context; those of pages that were killed go at its begin.

    Whose page still runs is told by a lock, which the system gives up with the process.

    Args:
        parent: Where to make it.
    """
    for left in parent.glob(f"{_FOLDER}*"):
        lock = FileLock(left / _LOCK)
        with suppress(OSError, Timeout, NotImplementedError):  # it runs, or it is no such folder
            lock.acquire(blocking=False)
            lock.release()
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=_FOLDER, dir=parent) as folder:
        lock = FileLock(Path(folder) / _LOCK)
        with suppress(OSError, NotImplementedError):  # a folder that takes no locks
            lock.acquire(blocking=False)
        try:
            yield folder
        finally:
            lock.release()


def check_address(host: str, port: int) -> None:
    """Raise OSError unless this machine can listen there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(
            f"Cannot listen on {host}:{port}: {reason}. Pass another --host or --port."
        ) from error


def _launch_options(studio: Studio, host: str, streams: Streams, uploads: Path) -> dict[str, Any]:
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from fastvideo_lightning.serve.openai_videos import OpenAIVideos

    guard = Middleware(Guard, folder=Path(studio.output_path), takes_uploads=studio.images.first)
    counted = Middleware(CountStreams, streams=streams)
    videos = Middleware(OpenAIVideos, studio=studio, folder=uploads)
    # A name that resolves to this machine is not enough: another site could have one made up.
    names = list(LOCAL_HOSTS) if host in LOCAL_HOSTS else ["*"]
    trusted = Middleware(TrustedHostMiddleware, names)
    return {
        "app_kwargs": {"middleware": [trusted, guard, videos, counted]},
        "css": CSS,
        "theme": make_theme(),
        "max_file_size": _MAX_UPLOAD,
        "footer_links": [],
        "share": False,
        "ssr_mode": False,
        "run_history": False,
        "enable_monitoring": False,
        "inbrowser": False,
        "prevent_thread_lock": True,
        "quiet": True,
    }
