"""Images of every format: any rows at any size, views that decode nothing, an identity that covers every frame."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hdf5_files import (
    demo,
    env_args,
    episode,
    libero_attributes,
    libero_demo,
    write_episode,
    write_robomimic,
)
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import fakes
from classact.data import images as images_module
from classact.data.images import ImageSource, ImageStore, frames_digest, resize_images, resized
from classact.data.layout import Layout
from classact.data.readers import first_episodes, hdf5_images, last_episodes, read_demonstrations
from classact.data.readers.aloha import read as read_aloha
from classact.data.types import Demonstrations


def _zarr(folder: Path) -> Path:
    return fakes.write_zarr(folder / "a.zarr", fakes.demonstrations(0, 8, (70, 60, 20)))


def _zip(folder: Path) -> Path:
    return Path(shutil.make_archive(str(_zarr(folder)), "zip", folder / "a.zarr"))


def _robomimic(folder: Path, compressed: bool = True) -> Path:
    demos = {f"demo_{i}": demo(steps, i, image=9) for i, steps in enumerate((5, 7, 4))}
    return write_robomimic(folder / "a.hdf5", demos, attributes=env_args(), compressed=compressed)


def _plain(folder: Path) -> Path:
    return _robomimic(folder, compressed=False)


def _libero(folder: Path) -> Path:
    name = "open_the_drawer"
    path = folder / f"{name}_demo.hdf5"
    return write_robomimic(
        path, {f"demo_{i}": libero_demo(5 + i, i) for i in range(3)}, attributes=libero_attributes(name, name)
    )


def _aloha(folder: Path, compressed: bool = False) -> Path:
    (folder / "real").mkdir()
    for i, steps in enumerate((5, 3, 8)):
        write_episode(folder / "real" / f"episode_{i}.hdf5", episode(steps, i), compressed=compressed)
    return folder / "real"


def _jpeg(folder: Path) -> Path:
    return _aloha(folder, compressed=True)


FORMATS: dict[str, Callable[[Path], Path]] = {
    "zarr": _zarr,
    "zip": _zip,
    "robomimic": _robomimic,
    "plain": _plain,
    "libero": _libero,
    "aloha": _aloha,
    "jpeg": _jpeg,
}


def source_of(data: Demonstrations) -> ImageSource:
    """A camera's images, of which none is decoded yet."""
    images = next(iter(data.images.values()))
    assert isinstance(images, ImageSource)
    return images


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Demonstrations, np.ndarray]]:
    """Demonstrations of a format, and all images of a camera decoded span by span."""
    known: dict[str, tuple[Demonstrations, np.ndarray]] = {}

    def reading(kind: str) -> tuple[Demonstrations, np.ndarray]:
        if kind not in known:
            data = read_demonstrations(FORMATS[kind](tmp_path_factory.mktemp(kind)))
            source = source_of(data)
            known[kind] = data, np.concatenate([source.decode(start, stop) for start, stop in source.spans()])
        return known[kind]

    return reading


@pytest.mark.parametrize("kind", FORMATS)
@given(numbers=st.lists(st.integers(0, 10_000), max_size=12), size=st.none() | st.integers(1, 20), seed=st.integers(0))
def test_any_rows_at_any_size(read: Any, kind: str, numbers: list[int], size: int | None, seed: int) -> None:
    data, whole = read(kind)
    source, count = source_of(data), len(whole)
    rows = np.array(numbers, np.int64) % count - count * (seed % 2)  # from the end, too
    expected = whole[rows] if size is None else resize_images(whole[rows], size)
    assert_array_equal(source.read(rows, size), expected)
    # Views of views are what they are of arrays.
    first, last = sorted((seed % count, (seed // 7) % count))
    part = source[first : last + 1]
    assert_array_equal(part[::-2], whole[first : last + 1][::-2])
    assert_array_equal(source[rows].read(np.arange(len(rows)), size), expected)
    assert_array_equal(source[first], whole[first])


@pytest.mark.parametrize("kind", FORMATS)
def test_spans_hold_every_image_once(read: Any, kind: str) -> None:
    data, whole = read(kind)
    source = source_of(data)
    assert source.shape == whole.shape == (data.num_steps, *whole.shape[1:])
    for images in (source, source[2:], source[::-1], source[[3, 3, 0]]):
        starts, stops = zip(*images.spans(), strict=True)
        assert starts == (0, *stops[:-1])
        assert stops[-1] == len(images)


@pytest.mark.parametrize("kind", FORMATS)
def test_parts_of_demonstrations_decode_nothing(read: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, whole = read(kind)
    with monkeypatch.context() as patch:
        patch.setattr(type(source_of(data)), "decode", lambda *_: pytest.fail("decoded"))
        parts = [first_episodes(data, 2), last_episodes(data, 1), data.subset([2, 0])]
        lengths = [episode.images for episode in data]
    starts = [data.bounds(e)[0] for e in range(3)]
    end = data.num_steps
    rows = [np.arange(starts[2]), np.arange(starts[2], end), np.r_[starts[2] : end, 0 : starts[1]]]
    for part, expected in zip(parts, rows, strict=True):
        assert_array_equal(source_of(part), whole[expected])
    assert_array_equal(np.concatenate([next(iter(images.values())) for images in lengths]), whole)
    digests = {frames_digest(source_of(part)) for part in (data, *parts)}
    assert len(digests) == 4


# Which images these are


def change(path: Path, kind: str, row: int) -> None:
    """Repair one stored image of the last demonstration."""
    if kind == "zarr":
        images = zarr.open_group(str(path), mode="r+", zarr_format=2)["data/img"]
        images[row] = 255 - np.asarray(images[row])
        return
    name = {"robomimic": "data/demo_2/obs/agentview_image", "plain": "data/demo_2/obs/agentview_image"}.get(kind)
    name = name or {"libero": "data/demo_2/obs/agentview_rgb"}.get(kind, "observations/images/top")
    with h5py.File(path if path.is_file() else path / "episode_2.hdf5", "r+") as file:
        if kind == "jpeg":
            file[name][row] = file[name][row - 1]
        else:
            file[name][row] = 255 - file[name][row]


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "zip"])
def test_every_image_is_part_of_the_identity(kind: str, tmp_path: Path) -> None:
    path = FORMATS[kind](tmp_path)
    found = {source_of(read_demonstrations(path)).digest()}
    for row in (1, 2, 3):
        change(path, kind, row)
        found.add(source_of(read_demonstrations(path)).digest())
    assert len(found) == 4


@pytest.mark.parametrize("kind", FORMATS)
def test_the_identity_is_that_of_the_content_wherever_it_lies(kind: str, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    path = FORMATS[kind](tmp_path / "one")
    before = source_of(read_demonstrations(path)).digest()
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert source_of(read_demonstrations(tmp_path / "two" / path.name)).digest() == before


def test_how_images_are_decoded_is_part_of_the_identity(tmp_path: Path) -> None:
    path = _aloha(tmp_path)
    plain, exchanged = (source_of(read_aloha(path, layout=Layout(bgr=bgr))) for bgr in (False, True))
    assert plain.digest() != exchanged.digest()
    assert plain.decoder == ""
    (tmp_path / "jpeg").mkdir()
    assert source_of(read_demonstrations(_jpeg(tmp_path / "jpeg"))).decoder.startswith("opencv ")


def test_an_identity_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSACT_CACHE", str(tmp_path / "cache"))
    path = _robomimic(tmp_path)
    before = source_of(read_demonstrations(path)).digest()
    monkeypatch.setattr(hdf5_images.Frames, "digest", lambda _: pytest.fail("read again"))
    assert source_of(read_demonstrations(path)).digest() == before
    (file,) = (tmp_path / "cache" / "digests").iterdir()
    file.write_text("{")
    monkeypatch.undo()
    monkeypatch.setenv("CLASSACT_CACHE", str(tmp_path / "cache"))
    assert source_of(read_demonstrations(path)).digest() == before


@pytest.mark.parametrize("kind", FORMATS)
def test_many_threads_decode_what_one_does(
    read: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, whole = read(kind)
    monkeypatch.setattr(images_module, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(images_module, "cores", lambda: 8)
    stored = ImageStore(tmp_path).get_or_create(resized(source_of(data), 7))
    assert_array_equal(stored, resize_images(whole, 7))
