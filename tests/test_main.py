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

    monkeypatch.setitem(sys.modules, "fastvideo_lightning.cli", Interrupted("cli"))
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\nStopped.\n"
