import importlib.util
import os
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from support.recorders import read_errors

from fastvideo_lightning.cli.app import run


def test_without_gradio_the_command_says_what_to_install(monkeypatch, capsys) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "gradio" else found(name)
    )
    assert run(["serve"]) == 2
    lines = read_errors(capsys)
    assert lines[0] == "Error: The page needs Gradio, which is not installed."
    assert lines[1] == 'Install it: pip install "fastvideo-lightning[serve]"'


def test_the_core_of_the_page_needs_no_gradio() -> None:
    code = (
        "import sys; sys.modules['gradio'] = sys.modules['starlette'] = None\n"
        "import fastvideo_lightning.cli.app, fastvideo_lightning.serve.session\n"
        "import fastvideo_lightning.serve.server"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "first", "second"),
    [
        (["--model", "nowhere"], "No folder 'nowhere' here", "Pass an existing folder"),
        (["--max-queue", "0"], "Invalid value for '--max-queue'", "--max-queue 4"),
        (["--port", "99999"], "Invalid value for '--port'", "--port 7860"),
        (["--host", "192.0.2.1"], "Cannot listen on 192.0.2.1:7860", "Pass another --host"),
        (["--output-path", os.devnull], f"--output-path {os.devnull!r} cannot be", "Pass a folder"),
        (["--use-fsdp-inference"], "no such option: --use-fsdp-inference", "serve --help"),
        (["--context-parallel", "2"], "no such option: --context-parallel", "serve --help"),
        (["--num-gpus", "2"], "no such option: --num-gpus", ""),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml cannot be read", "Pass the path"),
        (["--prompt", "x"], "no such option: --prompt", "Did you mean --port?"),
    ],
)
def test_a_wrong_choice_is_two_lines_and_starts_nothing(
    monkeypatch, capsys, tmp_path, words, first, second
) -> None:
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[serve]'")
    monkeypatch.chdir(tmp_path)
    assert run(["serve", *words]) == 2
    lines = read_errors(capsys)
    assert len(lines) == 2, lines
    assert lines[0].startswith(f"Error: {first}")
    assert second in lines[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("budget", "first", "second"),
    [
        ("auto", "'auto' asks how much GPU memory is free", "Pass a number of GiB."),
        ("0.01", "0.01 is too small: the smallest", "Pass more than --gpu-memory-budget 0.17."),
        ("0.12", "0.12 is too small: the smallest", "Pass more than --gpu-memory-budget 0.17."),
    ],
)
def test_a_budget_that_no_video_fits_is_refused_before_the_page_starts(
    monkeypatch, capsys, tmp_path, budget, first, second
) -> None:
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[serve]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastvideo_lightning.serve.studio.Studio.start", lambda studio: 1 / 0)
    assert run(["serve", "--accelerator", "cpu", "--gpu-memory-budget", budget]) == 2
    lines = read_errors(capsys)
    assert lines[0].startswith(f"Error: --gpu-memory-budget {first}")
    assert lines[1:] == [second]


def test_a_file_of_options_counts_and_what_is_typed_wins(monkeypatch, capsys, tmp_path) -> None:
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[serve]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.yaml").write_text("host: 192.0.2.1\nport: 8123\nmax-side: 64\n")
    for words, address in ([], "192.0.2.1:8123"), (["--port", "8124"], "192.0.2.1:8124"):
        assert run(["serve", "--config", "page.yaml", *words]) == 2
        assert f"Cannot listen on {address}" in read_errors(capsys)[0]
    (tmp_path / "page.yaml").write_text("num-gpus: 2\n")
    assert run(["serve", "--config", "page.yaml"]) == 2
    assert "page.yaml: no such option: num-gpus" in read_errors(capsys)[0]


@pytest.mark.slow
def test_the_command_says_where_the_page_is_and_ctrl_c_leaves_nothing_behind(
    tmp_path, hears_ctrl_c
) -> None:
    pytest.importorskip("gradio", reason="the page needs Gradio: pip install '.[serve]'")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "fastvideo_lightning", "serve", "--port", str(port)]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address == f"http://127.0.0.1:{port}/"
    with urllib.request.urlopen(address, timeout=10) as answer:
        assert answer.status == 200
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Press Ctrl-C to end." in said
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["output"]
