import av
import numpy as np
import pytest

from fastvideo_lightning.output import Audio, GeneratedVideo

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
