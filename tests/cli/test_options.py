import click
import pytest

from fastvideo_lightning.cli.config_file import read_config_file
from fastvideo_lightning.cli.errors import as_cli_options
from fastvideo_lightning.cli.options import MappingType, WrongChoiceError, make_options


@pytest.fixture
def read(tmp_path, monkeypatch):
    """Write a file and read it as options."""
    monkeypatch.chdir(tmp_path)

    def read(text):
        (tmp_path / "c.yaml").write_text(text)
        return read_config_file("c.yaml", make_options())

    return read


def test_keys_may_have_hyphens_or_underscores(read):
    text = "prompt: a\nnum-frames: 9\nvae_cpu_offload: false\nguidance-scale: 2\nnum-gpus: 2"
    assert read(text) == {
        "prompt": "a",
        "num_frames": 9,
        "vae_cpu_offload": False,
        "guidance_scale": 2.0,
        "num_gpus": 2,
    }


@pytest.mark.parametrize("text", ["", "# nothing", "seed:\nprompt: null"])
def test_an_empty_file_and_empty_values_give_nothing(read, text):
    assert read(text) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vae_offload: true", r"no such option: vae_offload\. Did you mean vae_cpu_offload\?"),
        ("num-framez: 5", r"no such option: num-framez\. Did you mean num-frames\?"),
        ("seed_: 2", r"no such option: seed_\. Did you mean seed\?"),
        ("config: d.yaml", "no such option: config"),
        ("no: 1", "no such option: False"),
        ("num_frames: '9'", "num_frames must be a whole number, got '9'"),
        ("num_frames: 9.5", r"num_frames must be a whole number, got 9\.5"),
        ("num_frames: true", "num_frames must be a whole number, got True"),
        ("guidance-scale: high", "guidance-scale must be a number, got 'high'"),
        ("vae_tiling: 1", "vae_tiling must be true or false, got 1"),
        ("save-video: 'no'", "save-video must be true or false, got 'no'"),
        ("prompt: 3", "prompt must be text; put it in quotes, got 3"),
        ("dtype: int4", "dtype: 'int4' is not one of 'auto'"),
        ("pipeline-arguments: 3", "pipeline-arguments must be names and values, .* got 3"),
        ("num-gpus: 0", "num-gpus: 0 is not in the range"),
        ("num-frames: 1\nnum_frames: 2", "num_frames is given twice"),
    ],
)
def test_a_wrong_key_or_value_is_refused_with_the_file_and_the_key(read, text, message):
    with pytest.raises(WrongChoiceError, match=f"^c.yaml: {message}"):
        read(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- prompt", "c.yaml must hold option names and values, got a list"),
        ("prompt: [", "c.yaml, line 1: not YAML"),
        ("a: 1\n b: 2", "c.yaml, line 2: not YAML"),
        ("a: \0", "c.yaml: not YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_with_its_line(read, text, message):
    with pytest.raises(WrongChoiceError, match=message):
        read(text)


def test_a_file_that_is_not_there_or_no_text_is_refused_by_name(tmp_path):
    with pytest.raises(WrongChoiceError, match="cannot be read: No such file"):
        read_config_file(str(tmp_path / "no.yaml"), make_options())
    (tmp_path / "picture.yaml").write_bytes(b"\x89PNG\xff")
    with pytest.raises(WrongChoiceError, match=r"picture\.yaml cannot be read: it is not UTF-8"):
        read_config_file(str(tmp_path / "picture.yaml"), make_options())


@pytest.mark.parametrize(
    ("python", "command"),
    [
        ("seed must be 1", "--seed must be 1"),
        ("the model has no seed", "the model has no seed"),
        ("Pass num_frames=81, or fps=5.", "Pass --num-frames 81, or --fps 5."),
        ("Pass guidance_scale=5.0.", "Pass --guidance-scale 5.0."),
        ("vae_tiling=False and vae_tiling=True", "--no-vae-tiling and --vae-tiling"),
        (
            "Pass a smaller height, width or num_frames.",
            "Pass a smaller --height, --width or --num-frames.",
        ),
        ("a height, width or num_frames=5", "a height, width or --num-frames 5"),
        ("compile=True or vae_tiling", "--compile or --vae-tiling"),
        ("height, num_frames must be", "--height, --num-frames must be"),
        ("an image-to-video model and image_path", "an image-to-video model and --image-path"),
        ("of another height or width", "of another height or width"),
        ("output_path='output/'; done", "--output-path 'output/'; done"),
        ("no key 'x'. Did you mean 'num_frames'?", "no key 'x'. Did you mean 'num_frames'?"),
        ("my_num_frames_x is no option", "my_num_frames_x is no option"),
    ],
)
def test_messages_speak_in_options_but_leave_plain_words_alone(python, command):
    assert as_cli_options(python) == command


@pytest.mark.parametrize(
    "text", ["{strength: 0.5, mask: m.mp4}", '{"strength": 0.5, "mask": "m.mp4"}']
)
def test_further_arguments_are_typed_as_yaml_or_json_and_mapped_in_a_file(read, text):
    expected = {"strength": 0.5, "mask": "m.mp4"}
    assert MappingType().convert(text, None, None) == expected
    assert read(f"pipeline-arguments: {text}") == {"pipeline_arguments": expected}


@pytest.mark.parametrize("text", ["strength", "3", "{a: [", "{1: 2}"])
def test_further_arguments_that_are_no_mapping_are_refused(text):
    with pytest.raises(click.BadParameter, match="must look like '{strength"):
        MappingType().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: a\nseed: 1\nprompt: b", "c.yaml, line 3: prompt is given twice. Keep one"),
        ("pipeline-arguments: {a: 1, b: 2, a: 3}", "c.yaml, line 1: a is given twice. Keep one"),
    ],
)
def test_a_key_that_stands_twice_in_a_file_is_refused_with_its_line(read, text, message):
    with pytest.raises(WrongChoiceError, match=f"^{message}"):
        read(text)


def test_a_name_that_is_typed_twice_among_further_arguments_is_refused():
    with pytest.raises(click.BadParameter, match="strength is given twice"):
        MappingType().convert("{strength: 1, strength: 2}", None, None)
