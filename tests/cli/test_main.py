import subprocess
import sys
from types import ModuleType

import pytest

from fastvideo_lightning.__main__ import main


def test_the_package_runs_as_the_command():
    command = [sys.executable, "-m", "fastvideo_lightning", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("fastvideo-lightning, version ")


def test_ctrl_c_during_the_first_imports_is_no_traceback(monkeypatch, capsys):
    class Interrupted(ModuleType):
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "fastvideo_lightning.cli.app", Interrupted("cli"))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\nStopped.\n"


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes no stream there")
@pytest.mark.parametrize(
    "closed",
    [
        "<&- 2>&-",
        *(
            pytest.param(others, marks=pytest.mark.exhaustive)
            for others in ("2>&-", "1>&- 2>&-", "<&- 1>&- 2>&-")
        ),
    ],
)
def test_a_command_whose_streams_are_closed_does_its_work(tmp_path, closed):
    words = '-m fastvideo_lightning generate --prompt "a red circle" --accelerator cpu'
    small = "--height 32 --width 32 --num-frames 5 --num-inference-steps 1"
    command = f"{sys.executable} {words} {small} {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    (video,) = (tmp_path / "output").glob("*.mp4")
    assert video.stat().st_size > 0
    if "1>&-" not in closed:
        assert done.stdout.split() == [str(video.relative_to(tmp_path))]


@pytest.mark.skipif(sys.platform == "win32", reason="a shell closes no stream there")
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    code = (
        "import os, sys; from fastvideo_lightning.cli import app as cli; cli.run = lambda: 0\n"
        "try: cli.main()\nexcept SystemExit: pass\n"
        "os._exit(0 if os.open('new', os.O_CREAT | os.O_WRONLY) > 2 else 1)"
    )
    command = f'{sys.executable} -c "{code}" <&- >&- 2>&-'
    assert subprocess.run(command, shell=True, cwd=tmp_path, check=False).returncode == 0
