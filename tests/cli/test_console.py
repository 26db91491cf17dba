import os
import subprocess
import sys

import pytest

WAIT = """
import sys
from fastvideo_lightning.cli.console import be_quiet, show_own_log, waiting
show_own_log()
be_quiet(sys.argv[1] == "quiet")
with waiting("loading libraries"):
    pass
sys.stderr.write("after")
"""


def read_terminal(*arguments):
    """What a program that waits writes to a terminal."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", WAIT, *arguments]
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("LOCAL_RANK", None)
    with subprocess.Popen(command, stderr=theirs, env=environment) as program:
        os.close(theirs)
        written = b""
        while b"after" not in written:
            written += os.read(ours, 4096)
        program.wait()
    os.close(ours)
    return written.decode()


def test_a_terminal_shows_what_is_waited_for_and_the_line_goes():
    shown, _, after = read_terminal("loud").rpartition("loading libraries")
    assert shown
    assert "\x1b[2K" in after  # the line is erased


def test_nothing_is_shown_where_quiet_was_asked_for():
    assert read_terminal("quiet") == "after"


@pytest.mark.parametrize("how", ["loud", "quiet"])
def test_a_pipe_gets_nothing_of_it(how):
    done = subprocess.run([sys.executable, "-c", WAIT, how], capture_output=True, text=True)
    assert done.stderr == "after"
