import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from fastvideo_lightning.output.files import check_output_folder
from fastvideo_lightning.output.video import Audio, GeneratedVideo

RED, BLUE = (230, 40, 40), (40, 80, 220)


def two_halves(frames=9, height=64, width=96):
    """Red above, blue below, with a white column that walks to the right."""
    video = np.empty((frames, height, width, 3), np.uint8)
    video[:, : height // 2], video[:, height // 2 :] = RED, BLUE
    for number in range(frames):
        video[number, :, 4 * number : 4 * number + 4] = 255
    return video


def make_video(frames, fps=12):
    return GeneratedVideo(frames=frames, prompt="a", seed=1, fps=fps)


def read_back(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        return np.stack(frames), stream.average_rate, stream.codec_context


def test_a_video_is_printed_with_the_shape_and_dtype_of_its_pixels_and_sound():
    video = make_video(two_halves())
    video.audio = Audio(np.zeros((2, 1600), np.float32), 16000)
    assert repr(video) == (
        "GeneratedVideo(frames=<uint8 [9, 64, 96, 3]>, prompt='a', seed=1, fps=12, index=0, "
        "video_path=None, generation_time_s=0.0, peak_gpu_memory_gib=None, num_replans=0, "
        "audio=Audio(samples=<float32 [2, 1600]>, sampling_rate=16000))"
    )


def test_an_mp4_read_back_has_the_frames_size_rate_and_colours_that_went_in(tmp_path):
    frames = two_halves()
    path = make_video(frames).save(tmp_path / "a.mp4")
    read, rate, coder = read_back(path)
    assert read.shape == frames.shape
    assert rate == 12
    assert (coder.name, coder.pix_fmt) == ("h264", "yuv420p")
    assert np.abs(read[:, 20, -20].astype(int) - RED).max() <= 6
    assert np.abs(read[:, 50, -20].astype(int) - BLUE).max() <= 6
    assert [int(row[10].sum(axis=-1).argmax()) // 4 for row in read] == list(range(9))


def test_the_mp4_says_in_which_colour_space_it_is(tmp_path):
    *_, coder = read_back(make_video(two_halves()).save(tmp_path / "a.mp4"))
    assert coder.colorspace == 1  # BT.709
    assert coder.color_range == 1


def test_the_index_of_the_mp4_lies_before_its_pictures(tmp_path):
    content = make_video(two_halves()).save(tmp_path / "a.mp4").read_bytes()
    assert -1 < content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(("height", "width"), [(33, 31), (1, 1), (64, 63)])
def test_an_odd_side_gets_its_last_pixels_twice(tmp_path, height, width):
    path = make_video(two_halves(2, height, width)).save(tmp_path / "a.mp4")
    read, *_ = read_back(path)
    assert read.shape == (2, height + height % 2, width + width % 2, 3)
    last = read[:, height - 1 : height + height % 2, width - 1 : width + width % 2].astype(int)
    assert np.abs(last - last[:, :1, :1]).max() <= 12


def test_one_frame_is_a_video_too(tmp_path):
    read, *_ = read_back(make_video(two_halves(1)).save(tmp_path / "a.mp4"))
    assert len(read) == 1


def test_frames_that_are_a_view_are_written_as_they_look(tmp_path):
    frames = two_halves()[::-1, :, ::-1]
    read, *_ = read_back(make_video(frames).save(tmp_path / "a.mp4"))
    assert np.abs(read.astype(int) - frames).mean() < 8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, error):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def write_half(frames, part, fps, audio):
        part.write_bytes(b"half")
        raise error("stop")

    monkeypatch.setattr("fastvideo_lightning.output.video._encode_mp4", write_half)
    with pytest.raises(error):
        make_video(two_halves()).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert path.read_bytes() == b"old"


def test_fine_detail_survives_in_a_small_video(tmp_path):
    rows, columns = np.mgrid[:64, :64]
    waves = [np.sin((columns + 2 * number) / 2) * np.cos(rows / 3) for number in range(9)]
    frames = np.repeat((128 + 100 * np.stack(waves))[..., None], 3, axis=-1).astype(np.uint8)
    read, *_ = read_back(make_video(frames).save(tmp_path / "a.mp4"))
    error = read.astype(float) - frames
    assert 10 * np.log10(255**2 / np.mean(error**2)) > 40  # dB


def test_a_written_file_has_the_rights_that_the_umask_leaves(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    path = make_video(two_halves(2)).save(tmp_path / "a.mp4")
    assert path.stat().st_mode == plain.stat().st_mode


def test_save_names_the_folder_that_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*missing"):
        make_video(two_halves(2)).save(tmp_path / "missing" / "a.mp4")


def test_save_refuses_another_ending_and_says_which_to_pass():
    with pytest.raises(ValueError, match=r"must end in \.mp4, got 'a\.gif'\. Pass 'a\.mp4'"):
        make_video(two_halves(2)).save("a.gif")


def test_pngs_hold_the_exact_pixels_in_order(tmp_path):
    frames = two_halves(3)
    paths = make_video(frames).save_frames(tmp_path / "pictures")
    assert [path.name for path in paths] == [f"frame_000{n}.png" for n in range(3)]
    assert all((np.asarray(Image.open(p)) == f).all() for p, f in zip(paths, frames, strict=True))


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 4, 4, 3), np.float32),
        np.zeros((2, 3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((0, 4, 4, 3), np.uint8),
    ],
)
def test_frames_of_another_shape_or_dtype_are_refused(frames):
    with pytest.raises(ValueError, match=r"uint8 \[frames, height, width, 3\], got"):
        make_video(frames)


def test_checking_a_folder_makes_it_and_leaves_nothing_in_it(tmp_path):
    folder = check_output_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "taken").touch()
    for path in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(NotADirectoryError, match="taken.* cannot be written to.* Pass a"):
            check_output_folder(path)


def test_a_link_to_nothing_in_the_place_of_the_folder_is_called_one(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="a link to nothing is in its place"):
        check_output_folder(tmp_path / "out")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write_is_a_permission_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="cannot be written to"):
        check_output_folder(tmp_path)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's /proc")
def test_a_folder_that_the_system_refuses_to_make_is_an_error_that_names_it():
    with pytest.raises(OSError, match="'/proc/videos' cannot be written to"):
        check_output_folder("/proc/videos")


@pytest.mark.parametrize("folder", ["", "a\0b"])
def test_a_folder_name_that_cannot_be_is_a_value_error(folder):
    with pytest.raises(ValueError, match="output_path must be a folder"):
        check_output_folder(folder)


@pytest.mark.parametrize("folder", [None, b"videos", 3])
def test_what_is_no_path_is_a_type_error_that_names_the_argument(folder):
    with pytest.raises(TypeError, match="output_path must be a folder, got"):
        check_output_folder(folder)


def test_a_file_name_in_place_of_the_folder_is_refused_with_the_folder_to_pass(tmp_path):
    with pytest.raises(ValueError, match="Pass the folder: output_path='videos'"):
        check_output_folder("videos/mine.mp4")
    (tmp_path / "odd.mp4").mkdir()
    assert check_output_folder(tmp_path / "odd.mp4").is_dir()


def test_output_imports_neither_torch_nor_the_encoder():
    code = (
        "import sys, fastvideo_lightning.output.video;"
        "assert not {'torch', 'lightning', 'av', 'PIL'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_equal_frames_give_equal_files(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
    frames[:, 20:40, 20:40] = (200, 30, 30)
    files = set()
    for number in range(6):
        path = tmp_path / f"{number}.mp4"
        clutter = [np.full(10_000 * (number + 1), number) for _ in range(20)]
        GeneratedVideo(frames=frames, prompt="a", seed=0, fps=8).save(path)
        files.add(path.read_bytes())
        del clutter
    assert len(files) == 1


def read_moving_image(encoded: bytes) -> np.ndarray:
    pictures = ImageSequence.Iterator(Image.open(io.BytesIO(encoded)))
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def test_a_moving_image_of_few_colours_has_the_very_frames_and_their_rate():
    frames = two_halves()
    encoded = make_video(frames, fps=10).as_moving_image()
    assert np.array_equal(read_moving_image(encoded), frames)
    with Image.open(io.BytesIO(encoded)) as image:
        assert (image.format, image.info["duration"], image.info["loop"]) == ("GIF", 100, 0)


def test_a_moving_image_of_one_frame_is_that_picture():
    frames = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    assert np.array_equal(read_moving_image(make_video(frames).as_moving_image()), frames)


@pytest.mark.parametrize(("count", "kind"), [(1, "image/png"), (5, "video/mp4")])
@pytest.mark.parametrize("is_saved", [False, True])
def test_a_notebook_shows_the_video_itself(count, kind, is_saved, tmp_path):
    video = GeneratedVideo(np.zeros((count, 16, 16, 3), np.uint8), "<a & b>", seed=1, fps=8)
    if is_saved:
        video.video_path = video.save(tmp_path / ("a.png" if count == 1 else "a.mp4"))
    shown = video._repr_html_()
    content = base64.b64decode(shown.partition(f"data:{kind};base64,")[2].partition('"')[0])
    expected = video.save(tmp_path / ("b.png" if count == 1 else "b.mp4")).read_bytes()
    assert content == expected
    assert "&lt;a &amp; b&gt;" in shown
    assert "seed 1" in shown
