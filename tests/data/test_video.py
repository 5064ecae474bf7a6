import numpy as np
import pytest

from classact.data import video
from classact.errors import DataError, MissingDependencyError


def frames(count: int = 7, height: int = 64, width: int = 96) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    base = np.stack([rows * 2, columns * 2, (rows + columns) // 2 + 40], axis=-1)
    return np.stack([np.clip(base + 6 * t, 0, 255) for t in range(count)]).astype(np.uint8)


def test_round_trip(tmp_path):
    wanted = frames()
    path = video.write_mp4(tmp_path / "clip.mp4", wanted, fps=10)
    assert path == tmp_path / "clip.mp4"
    found = video.read_video(path)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 4
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_file_is_h264_yuv420p_at_the_frame_rate(tmp_path):
    import av

    with av.open(str(video.write_mp4(tmp_path / "clip.mp4", frames(), fps=12))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 12)


def test_odd_sizes_are_padded_and_one_frame_is_enough(tmp_path):
    path = video.write_mp4(tmp_path / "odd.mp4", frames(1, 33, 47), fps=5)
    assert video.read_video(path).shape == (1, 34, 48, 3)


def test_without_a_codec_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "H264_ENCODERS", ("no-such-encoder",))
    with pytest.raises(MissingDependencyError, match=r"no H.264 encoder \(looked for no-such-encoder\).*pip install"):
        video.write_mp4(tmp_path / "clip.mp4", frames(), fps=10)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "bad", [np.zeros((0, 4, 4, 3), np.uint8), np.zeros((2, 4, 4), np.uint8), np.zeros((2, 4, 4, 3))]
)
def test_wrong_frames_are_refused(tmp_path, bad):
    with pytest.raises(DataError, match=r"expected frames of shape \(T, H, W, 3\)"):
        video.write_mp4(tmp_path / "clip.mp4", bad, fps=10)
    assert not list(tmp_path.iterdir())


def test_frame_rate_is_checked(tmp_path):
    with pytest.raises(DataError, match="at least 1 frame per second, got 0"):
        video.write_mp4(tmp_path / "clip.mp4", frames(), fps=0)


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.mp4 does not exist"):
        video.read_video(tmp_path / "none.mp4")
    (tmp_path / "bad.mp4").write_bytes(b"not a video at all")
    with pytest.raises(DataError, match=r"bad\.mp4 cannot be decoded"):
        video.read_video(tmp_path / "bad.mp4")
