"""Whatever is typed or stands in a file: no traceback, no write outside of the output folder."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.recorders import record_calls

from fastvideo_lightning.batch.manifest import DONE, Entry, Manifest
from fastvideo_lightning.cli.app import cli, run
from fastvideo_lightning.cli.generate import generate
from fastvideo_lightning.config import SamplingParams
from fastvideo_lightning.output.files import give_name
from fastvideo_lightning.prompts.dataset import PromptDataset
from fastvideo_lightning.prompts.files import read_prompt_file

settings.register_profile(
    "fuzz",
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fuzz")

FIELDS = [*SamplingParams.__dataclass_fields__, "prompt"]
OPTIONS = [word for param in generate.params for word in (*param.opts, *param.secondary_opts)]
# Files are written where one says: what is typed for those stays inside of the test's folder.
PLACES = {"output_path", "report"}
HARMLESS = [word for word in OPTIONS if word not in {"--output-path", "--report", "--debug"}]
NAMES = ["CON", "nul.txt", "../../etc/passwd", "/", "a\0b", "..", "~", "-", "😀" * 99, "x" * 10_000]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)
texts = st.sampled_from(NAMES) | st.text(max_size=60)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, in which only `out` may be written to."""
    monkeypatch.chdir(tmp_path)
    record_calls(monkeypatch)
    return tmp_path


def run_quietly(words):
    """Return the exit code and what went to stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    return code, err.getvalue()


def check_run(place, words, *, known):
    code, text = run_quietly(words)
    assert code in (0, 2), text
    assert "Traceback" not in text
    if code == 2:
        assert text
    assert {path.name for path in place.iterdir()} <= {*known, "out"}


@given(words=st.lists(st.sampled_from(HARMLESS) | texts | st.integers().map(str), max_size=6))
def test_any_words_end_with_a_video_or_one_line(place, words):
    check_run(place, ["generate", "--prompt", "a", "--output-path", "out", *words], known=())


@given(option=st.sampled_from(HARMLESS), value=texts | scalars.map(str))
def test_any_value_of_an_option_ends_with_a_video_or_one_line(place, option, value):
    words = [f"{option}={value}"]
    check_run(place, ["generate", "--output-path", "out", "--prompt", "a", *words], known=())


# A wrong option at the end keeps `serve` from starting, and `pack` from writing a real checkpoint.
OTHERS = {
    "plan": [],
    "models": ["--zzz"],
    "serve": ["--zzz"],
    "pack": ["./none", "out"],
}
WORDS = {
    name: [opt for param in cli.commands[name].params for opt in param.opts if opt.startswith("--")]
    for name in OTHERS
}


@given(
    command=st.sampled_from(sorted(OTHERS)),
    value=texts | scalars.map(str) | st.sampled_from(["auto", "12", "RTX 4090", "tiny-shapes"]),
    data=st.data(),
)
def test_any_value_after_any_other_command_ends_with_an_answer_or_one_line(
    place, command, value, data
):
    option = data.draw(st.sampled_from(WORDS[command]).filter(lambda word: word != "--debug"))
    check_run(place, [command, f"{option}={value}", *OTHERS[command]], known=())


options = st.sampled_from([str(param.name) for param in generate.params if param.name])
settings_of_a_file = st.dictionaries(
    options.filter(lambda name: name not in PLACES) | st.text(max_size=9), values, max_size=4
)


@given(content=settings_of_a_file.map(lambda d: yaml.safe_dump(d).encode()) | st.binary())
def test_any_config_file_ends_with_a_video_or_one_line(place, content):
    (place / "c.yaml").write_bytes(content)
    words = ["--config", "c.yaml", "--prompt", "a", "--output-path", "out"]
    check_run(place, ["generate", *words], known={"c.yaml"})


@pytest.mark.parametrize(
    "content",
    [
        "!!python/object/apply:os.system ['touch ran']",
        "prompt: !!python/object/new:os.system ['touch ran']",
        "a: &a [*a, *a]",
        "prompt: {{{{{{",
        "[" * 5000,
        "? [a]\n: b",
        "prompt: 2030-01-01",
        "prompt: 2030-99-99",
        "seed: 0x" + "f" * 5000,
        "\0",
    ],
)
def test_a_config_file_that_would_do_harm_does_none(place, content):
    (place / "c.yaml").write_text(content)
    check_run(place, ["generate", "--config", "c.yaml", "--prompt", "a"], known={"c.yaml"})
    assert not (place / "ran").exists()


items = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=9), values | texts, max_size=4)
jsonl = st.lists(items.map(json.dumps) | st.text(max_size=30), max_size=4).map("\n".join)
cells = st.sampled_from(FIELDS) | texts | scalars.map(str)
csv = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=4).map("\r\n".join)
contents = (jsonl | csv | st.text()).map(lambda text: text.encode("utf-8", "surrogatepass"))


@given(content=contents | st.binary(), suffix=st.sampled_from([".txt", ".jsonl", ".csv"]))
def test_any_prompt_file_gives_prompts_or_one_error_with_its_name(place, content, suffix):
    path = place / f"p{suffix}"
    path.write_bytes(content)
    prompts, error = [], ""
    try:
        prompts = read_prompt_file(path)
    except ValueError as caught:
        error = str(caught)
    assert bool(prompts) == (not error)
    assert not error or path.name in error
    for item in PromptDataset(prompts):
        assert item["prompt"].encode()


@given(content=contents, suffix=st.sampled_from([".txt", ".jsonl", ".csv"]))
@settings(max_examples=60)
def test_any_prompt_file_on_the_command_line_ends_with_videos_or_one_line(place, content, suffix):
    (place / f"p{suffix}").write_bytes(content)
    words = ["--prompts", f"p{suffix}", "--output-path", "out"]
    check_run(place, ["generate", *words], known={"p.txt", "p.jsonl", "p.csv"})


@given(prompt=texts)
def test_any_prompt_names_a_new_file_in_its_folder(place, prompt):
    folder = place / "out"
    folder.mkdir(exist_ok=True)
    before = set(folder.iterdir())
    part = folder / ".part.mp4"
    part.touch()
    path = give_name(part, prompt)
    assert path.parent == folder
    assert set(folder.iterdir()) - before == {path}
    assert {left.name for left in place.iterdir()} == {"out"}
    path.unlink()


@given(content=contents | st.binary())
def test_any_manifest_is_read_and_goes_on(place, content):
    manifest = Manifest(Path(place))
    manifest.path.write_bytes(content)
    before = manifest.read()
    entry = Entry("a", 7, DONE, file="a.mp4", sha256="00")
    new = Path(place) / "new"
    new.write_bytes(b"".join(line + b"\n" for line in [*manifest.read_lines(), entry.to_line()]))
    manifest.replace(new)
    assert manifest.read() == [*before, entry]
