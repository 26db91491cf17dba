import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import av
import pytest

ROOT = Path(__file__).resolve().parents[1]


def environment():
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": paths}


def run_example(name, folder, *arguments):
    """Run an example as a person does, in an empty folder; return what it printed."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    if name != "finetune_lora.py":  # which imports PEFT by itself
        assert done.stderr == "", "what other libraries say on import is for nobody"
    return done.stdout


def count_frames(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_generate_writes_a_video_and_says_where(tmp_path):
    printed = run_example("generate.py", tmp_path)
    assert printed.startswith(
        os.path.join("output", "a_red_circle_moves_right.mp4") + ": 17 frames"
    )
    assert count_frames(tmp_path / "output" / "a_red_circle_moves_right.mp4") == 17


def test_the_fabric_script_writes_a_video_of_each_prompt(tmp_path):
    printed = run_example(
        "fabric_script.py", tmp_path, "tiny-shapes", "a blue square moves up", "an orange circle"
    )
    names = ["a_blue_square_moves_up.mp4", "an_orange_circle.mp4"]
    assert [count_frames(tmp_path / "output" / name) for name in names] == [17, 17]
    assert [line.rsplit(" ", 1)[1] for line in printed.splitlines()] == ["1024", "1025"]


def test_the_custom_callback_logs_every_step_of_both_videos(tmp_path):
    printed = run_example("custom_callback.py", tmp_path)
    paths, lines = zip(*(line.split(": ", 1) for line in printed.splitlines()), strict=True)
    assert [count_frames(tmp_path / path) for path in paths] == [17, 17]
    entries = [json.loads(line) for line in lines]
    assert [entry["seed"] for entry in entries] == [1024, 7]
    assert len({len(entry["steps_s"]) for entry in entries}) == 1
    assert all(step_s > 0 for entry in entries for step_s in entry["steps_s"])
    assert entries == [json.loads(s) for s in (tmp_path / "stage_times.jsonl").open()]
    assert "/stage_times.jsonl" in (ROOT / ".gitignore").read_text().split(), "run from a clone"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_placement_of_ones_own_makes_the_video_that_the_plain_script_makes(tmp_path):
    films = []
    for name in ("custom_placement.py", "fabric_script.py"):
        (tmp_path / name).mkdir()
        path = run_example(name, tmp_path / name).splitlines()[-1].split(": ")[0]
        films.append((tmp_path / name / path).read_bytes())
    assert films[0] == films[1]


@pytest.mark.slow
@pytest.mark.exhaustive
def test_an_adapter_fine_tuned_in_streamed_blocks_turns_the_video_green(tmp_path):
    printed = run_example("finetune_lora.py", tmp_path).splitlines()
    first, *_, last = (float(loss) for loss in printed[0].split()[1:])
    assert last < 0.5 * first
    assert (tmp_path / "output" / "green" / "pytorch_lora_weights.safetensors").is_file()
    for line, colour in zip(printed[1:], ("red", "green"), strict=True):
        path, _, rest = line.partition(" with")
        assert count_frames(tmp_path / path) == 17
        amounts = dict(part.split() for part in rest.partition(": ")[2].split(", "))
        assert max(amounts, key=lambda name: int(amounts[name])) == colour


@pytest.mark.slow
@pytest.mark.exhaustive
def test_the_server_answers_a_request_over_http_with_a_video_or_with_what_was_wrong(tmp_path):
    pytest.importorskip("litserve", reason="needs litserve")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "litserve_server.py"), "tiny-shapes", str(port)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )

    def post(content):
        body = json.dumps(content).encode()
        request = urllib.request.Request(f"{url}/predict", body)
        request.add_header("Content-Type", "application/json")
        return urllib.request.urlopen(request, timeout=120)

    try:
        wait_until_healthy(f"{url}/health", server)
        with post({"prompt": "a red circle", "num_inference_steps": 2, "seed": 7}) as answer:
            assert answer.headers["Content-Type"] == "video/mp4"
            (tmp_path / "video.mp4").write_bytes(answer.read())
        assert count_frames(tmp_path / "video.mp4") == 17
        for passed, answer in (
            ({"heigt": 64}, "Did you mean height"),
            ({"image_path": "no/such.png"}, "no/such.png"),
        ):
            with pytest.raises(urllib.error.HTTPError, match="422") as wrong:
                post({"prompt": "a red circle", **passed})
            assert answer in wrong.value.read().decode()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def wait_until_healthy(url, server):
    for _ in range(600):
        assert server.poll() is None, server.stdout.read()
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.2)
    pytest.fail("the server did not come up")


@pytest.mark.parametrize(
    "name",
    [
        "generate.py",
        "fabric_script.py",
        "custom_callback.py",
        "custom_placement.py",
        "multi_gpu_fsdp.py",
        "finetune_lora.py",
        "litserve_server.py",
    ],
)
def test_an_example_says_at_its_top_how_to_run_it(name):
    assert f"python examples/{name}" in (ROOT / "examples" / name).read_text().split('"""')[1]
