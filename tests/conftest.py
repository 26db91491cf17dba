"""Checkpoints that several tests read, written once."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

# OpenMP reads it when torch is imported: threads that spin while they wait for each other make the
# tests many times slower on a machine that does something else as well.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Processes of `pytest -n` share the cores.
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // int(workers))))

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from support import checkpoints  # noqa: E402

# The same cases on every machine, however busy it is.
settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")

LEFT_OUT = pytest.StashKey[int]()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share `pytest`, as README types it, between two processes; `pytest -n 0` has one."""
    # A process that it shares them with, which is bare too, has its part already.
    is_bare = not config.invocation_params.args and not hasattr(config, "workerinput")
    if is_bare and getattr(config.option, "numprocesses", 0) is None and os.cpu_count() != 1:
        config.option.numprocesses = 2


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is marked `exhaustive`, but for what is named by `-m` or by its node id."""
    if config.option.markexpr:
        return
    left_out = [
        item for item in items if item.get_closest_marker("exhaustive") and not _named(item)
    ]
    config.stash[LEFT_OUT] = len(left_out)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _named(item: pytest.Item) -> bool:
    _, _, name = item.nodeid.partition("::")
    for argument in item.config.args:
        path, _, wanted = argument.partition("::")
        is_wanted = wanted and (name == wanted or name.startswith((f"{wanted}[", f"{wanted}::")))
        if is_wanted and (item.config.invocation_params.dir / path).resolve() == item.path:
            return True
    return False


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Have a process of `pytest -n` tell the first one how many it left out."""
    if output := getattr(session.config, "workeroutput", None):
        output["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Hear how many a process of `pytest -n` left out: each of them collects all tests."""
    if left_out := getattr(node, "workeroutput", {}).get("left_out"):
        node.config.stash[LEFT_OUT] = left_out


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Say how many tests were left out."""
    if left_out := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(
            f"{left_out} exhaustive tests were left out, which repeat a promise over all families, "
            "seeds, kills or processes. They run with `pytest -m exhaustive`."
        )


@pytest.fixture(autouse=True)
def _environment_of_its_own() -> Iterator[None]:
    """Undo what a test leaves in the environment.

    A launch leaves the rank and the world there; a process that another test starts would take
    itself for one of a world that is gone, and wait for it.
    """
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Let this process and those that it starts hear SIGINT.

    A shell without job control has what it starts by `pytest &` ignore it, and so their children.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a small checkpoint by its kind in `WRITERS`; leave it as it is."""
    root = tmp_path_factory.mktemp("checkpoints")

    def find(kind: str) -> Path:
        folder = root / kind
        if not folder.exists():
            checkpoints.WRITERS[kind](folder)
        return folder

    return find


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small picture."""
    return checkpoints.write_image(tmp_path_factory.mktemp("image") / "first.png")


@pytest.fixture(scope="session")
def last_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return another small picture."""
    return checkpoints.write_image(tmp_path_factory.mktemp("image") / "last.png", size=(30, 40))


@pytest.fixture
def broken(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(checkpoint("t2v"), tmp_path / "broken"))


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a generator place weights as on a GPU: the engine copies inline on a CPU."""
    from fastvideo_lightning.generator.placements import ModelPlacement

    begin = ModelPlacement.__init__

    def as_on_gpu(self: ModelPlacement, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **{**kwargs, "on_gpu": True})

    monkeypatch.setattr(ModelPlacement, "__init__", as_on_gpu)
