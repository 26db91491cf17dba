import av
import numpy as np
import pytest
from support.recipes import PROMPT, RECIPES

from fastvideo_lightning import VideoGenerator
from fastvideo_lightning.output.video import Audio, GeneratedVideo

RATE = 24_000


def video_with(audio):
    frames = np.zeros((24, 32, 48, 3), np.uint8)
    return GeneratedVideo(frames=frames, prompt="a", seed=1, fps=24, audio=audio)


def tone(*hertz):
    seconds = np.arange(RATE) / RATE
    return np.stack([0.5 * np.sin(2 * np.pi * h * seconds) for h in hertz]).astype(np.float32)


@pytest.mark.parametrize("hertz", [(440,), (440, 880)])
def test_the_mp4_has_each_channel_of_the_sound_at_its_pitch_and_length(tmp_path, hertz):
    path = video_with(Audio(tone(*hertz), RATE)).save(tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        (stream,) = container.streams.audio
        assert (stream.codec_context.name, stream.rate) == ("aac", RATE)
        sound = np.concatenate([f.to_ndarray() for f in container.decode(stream)], axis=1)
    assert len(sound) == len(hertz)
    assert sound.shape[1] == pytest.approx(RATE, abs=2048)
    for channel, pitch in zip(sound, hertz, strict=True):
        loudest = np.abs(np.fft.rfft(channel)).argmax() * RATE / sound.shape[1]
        assert loudest == pytest.approx(pitch, abs=2)


def test_a_video_without_sound_has_no_sound_track(tmp_path):
    with av.open(str(video_with(None).save(tmp_path / "a.mp4"))) as container:
        assert not container.streams.audio


@pytest.mark.parametrize("shape", [(RATE,), (3, RATE), (1, 2, RATE)])
def test_sound_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"float32 \[channels, samples\]"):
        Audio(np.zeros(shape, np.float32), RATE)


def test_a_generator_writes_the_sound_that_ltx_2_makes_beside_its_frames(tmp_path):
    recipe = RECIPES["LTX2Pipeline"]
    recipe.build().save_pretrained(tmp_path / "model")
    where = {"accelerator": "cpu", "progress": False}
    with VideoGenerator.from_pretrained(str(tmp_path / "model"), **where) as generator:
        video = generator.generate_video(PROMPT, output_path=tmp_path, **recipe.ours({}))
    with av.open(str(video.video_path)) as container:
        assert len(container.streams.video) == 1
        (stream,) = container.streams.audio
        assert stream.rate == video.audio.sampling_rate == 16_000
        assert stream.channels == len(video.audio.samples)
        sound = np.concatenate([f.to_ndarray() for f in container.decode(stream)], axis=1)
    assert np.abs(sound).max() > 0
    assert sound.shape[1] >= video.audio.samples.shape[1]
