from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fakes
from classact.data import images as images_module
from classact.data.images import ImageSource, ImageStore, resize_images
from classact.data.types import Demonstrations
from classact.errors import ConfigError, DataError, StorageError
from classact.run import data as data_module
from classact.run import frames as frames_module
from classact.run.config import FramesConfig
from classact.run.data import RunData
from classact.run.frames import aspect, needs_rendering, prepare_frames
from classact.run.presets import from_preset
from classact.sims import make_simulator, rendering
from classact.sims.rendering import appearance_seed
from classact.sims.shifts import SHIFTS
from classact.train.representation import Trainer

DATA = fakes.demonstrations(size=48, lengths=(5, 3))
ONE = FramesConfig(workers=1)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


@pytest.mark.parametrize(
    ("source", "shift", "cameras", "rendered"),
    [
        ("auto", "fixed-color", True, False),
        ("auto", "rand-color", True, True),
        ("auto", "fixed-color", False, True),
        ("recorded", "rand-color", True, False),
        ("rendered", "fixed-color", True, True),
    ],
)
def test_recorded_or_rendered(source: str, shift: str, cameras: bool, rendered: bool) -> None:
    data = DATA if cameras else DATA.with_images({})
    assert needs_rendering(data, "top", FramesConfig(source=source, shift=shift)) is rendered


@pytest.mark.parametrize(
    ("simulator", "size", "shown", "rendered"),
    [
        ("", 96, "", False),  # a recording of unknown origin is taken as it is
        ("pusht", 48, "", False),
        ("pusht", 96, "", True),  # drawn at 48 pixels, and evaluations draw at 96
        ("pusht", 48, "fixed", False),  # another name of the plain appearance
        ("pusht", 48, "rand-color", True),
    ],
)
def test_recorded_where_it_looks_as_in_evaluations(simulator: str, size: int, shown: str, rendered: bool) -> None:
    data = replace(DATA, simulator=simulator, images_shift=shown)
    assert needs_rendering(data, "top", FramesConfig(render_size=size)) is rendered


@pytest.mark.parametrize(
    ("data", "config", "message"),
    [
        (replace(DATA, states=None), FramesConfig(shift="rand-color"), r"no simulator states, so shift 'rand-color'"),
        (replace(DATA, states=None), FramesConfig(source="rendered"), r"source \"rendered\"|source 'rendered'"),
        (replace(DATA, states=None).with_images({}), ONE, r"no images of camera 'top', and no simulator states"),
        (DATA.with_images({}), FramesConfig(source="recorded"), r"no images of camera 'top'; recorded are no cameras"),
        (DATA, FramesConfig(source="live"), r"unknown frames source 'live': available are 'auto', 'recorded'"),
    ],
)
def test_what_cannot_be_prepared(data: Demonstrations, config: FramesConfig, message: str, store: ImageStore) -> None:
    with pytest.raises(DataError, match=message):
        prepare_frames(data, ("top",), 32, config, store=store)
    assert not list(store.root.iterdir())


def test_resized_is_what_is_resized_live(store: ImageStore) -> None:
    calls: list[tuple[int, int]] = []
    frames = prepare_frames(DATA, ("top",), 32, ONE, lambda *a: calls.append(a), store)
    assert list(frames.images) == ["top"]
    for row in range(DATA.num_steps):
        assert_array_equal(frames.images["top"][row], resize_images(DATA.images["top"][row][None], 32)[0])
    assert calls == [(8, 8)]
    again = prepare_frames(DATA, ("top",), 32, ONE, lambda *a: calls.append(a), store)
    assert_array_equal(again.images["top"], frames.images["top"])
    assert calls == [(8, 8)]


def test_images_of_the_right_size_are_taken_as_they_are(store: ImageStore) -> None:
    assert prepare_frames(DATA, ("top",), 48, ONE, store=store).images["top"] is DATA.images["top"]


class Counted(ImageSource):
    """Images that are drawn when they are asked for, in spans of several lengths; it counts how often."""

    def __init__(self, count: int, side: int = 12, fails: BaseException | None = None) -> None:
        self.shape, self.fails = (count, side, side, 3), fails
        self.decoded = np.zeros(count, int)

    def digest(self) -> str:
        return f"drawn {self.shape}"

    def spans(self) -> Iterator[tuple[int, int]]:
        stops = [*range(3, len(self), 7), len(self)]
        return zip([0, *stops[:-1]], stops, strict=True)

    def decode(self, start: int, stop: int) -> np.ndarray:
        np.add.at(self.decoded, np.arange(start, stop), 1)
        if self.fails is not None and start > len(self) // 2:
            raise self.fails
        rows = (np.arange(start, stop) % 256).astype(np.uint8)[:, None, None, None]
        return np.broadcast_to(rows, (stop - start, *self.shape[1:])) * np.uint8(3)


def recorded(images: ImageSource) -> Demonstrations:
    """Demonstrations seen by a camera of these images."""
    return fakes.demonstrations(size=8, lengths=(len(images) - 5, 5)).with_images({"top": images})


@pytest.mark.parametrize("size", [4, 12, 20])
def test_every_image_is_decoded_once_at_the_size_wanted(size: int, store: ImageStore) -> None:
    images, calls = Counted(60), []
    data = recorded(images)
    assert aspect(data, ("top",), ONE) == 1.0
    assert not needs_rendering(data, "top", ONE)
    assert not images.decoded.any()
    seen = prepare_frames(data, ("top",), size, ONE, lambda *a: calls.append(a), store).images["top"]
    assert_array_equal(images.decoded, 1)
    assert [done for done, _ in calls] == [stop for _, stop in images.spans()]
    assert isinstance(seen, np.memmap)
    assert_array_equal(seen, resize_images(np.asarray(images), size))
    images.decoded[:] = 0
    prepare_frames(data, ("top",), size, ONE, store=store)
    assert not images.decoded.any()


def test_few_images_are_in_memory_at_a_time(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "cores", lambda: 2)
    images = Counted(700, 200)  # 84 MB, in blocks of 7 images: 0.84 MB
    tracemalloc.start()
    try:
        prepare_frames(recorded(images), ("top",), 20, ONE, store=store)
        assert tracemalloc.get_traced_memory()[1] < 12 * 2**20
    finally:
        tracemalloc.stop()


def test_space_for_all_cameras_is_looked_for_first_and_said(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    top, wrist, said = Counted(60), Counted(60, 13), []
    data = recorded(top).with_images({"top": top, "wrist": wrist})
    usage = shutil.disk_usage(store.root)
    needed = 2 * 60 * 300 * 300 * 3
    monkeypatch.setattr(images_module.shutil, "disk_usage", lambda _: usage._replace(free=needed + 2**26 - 1))
    with pytest.raises(
        StorageError, match=f"{needed + 2**26:,} bytes needed, {needed + 2**26 - 1:,} bytes free.* set CLASS"
    ):
        prepare_frames(data, ("top", "wrist"), 300, ONE, store=store, say=said.append)
    assert said == []
    assert not top.decoded.any()
    monkeypatch.setattr(images_module.shutil, "disk_usage", lambda _: usage._replace(free=needed + 2**26))
    prepare_frames(data, ("top", "wrist"), 300, ONE, store=store, say=said.append)
    assert said == [f"images to prepare: 2 x (60 x 300 x 300 x 3) = 31 MiB in {store.root}, where 95 MiB are free"]
    prepare_frames(data, ("top", "wrist"), 300, ONE, store=store, say=said.append)
    assert len(said) == 1


@pytest.mark.parametrize("problem", [DataError("a frame is broken"), KeyboardInterrupt()])
def test_an_interrupted_preparation_leaves_nothing(problem: BaseException, store: ImageStore) -> None:
    images = Counted(60, fails=problem)
    with pytest.raises(type(problem)):
        prepare_frames(recorded(images), ("top",), 4, ONE, store=store)
    assert not list(store.root.iterdir())
    images.fails = None
    seen = prepare_frames(recorded(images), ("top",), 4, ONE, store=store).images["top"]
    assert_array_equal(seen, resize_images(np.asarray(images), 4))


def test_a_killed_preparation_leaves_nothing_that_looks_whole(store: ImageStore) -> None:
    code = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
sys.path.insert(0, {str(Path(fakes.__file__).parent)!r})
from test_frames import ONE, Counted, recorded
from classact.data.images import ImageStore
from classact.run.frames import prepare_frames
def kill(done, total):
    if done > total // 2:
        os.kill(os.getpid(), signal.SIGKILL)
prepare_frames(recorded(Counted(60)), ("top",), 4, ONE, kill, ImageStore(Path({str(store.root)!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=240)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(store.root.iterdir())) == 1
    images = Counted(60)
    seen = prepare_frames(recorded(images), ("top",), 4, ONE, store=store).images["top"]
    assert_array_equal(images.decoded, 1)
    assert_array_equal(seen, resize_images(np.asarray(images), 4))


def test_other_images_under_the_same_name_are_not_mixed_up(store: ImageStore) -> None:
    darker = DATA.with_images({"top": np.asarray(DATA.images["top"]) // 2})
    one, two = (prepare_frames(d, ("top",), 32, ONE, store=store).images["top"] for d in (DATA, darker))
    assert np.abs(np.asarray(one, int) - two).max() > 50


def test_one_repaired_frame_of_many_is_seen(store: ImageStore) -> None:
    data = fakes.demonstrations(size=8, lengths=(400, 300))
    images = np.array(data.images["top"])
    for row in (1, 333, 698):
        images[row] = 255 - images[row]
        seen = prepare_frames(data.with_images({"top": images.copy()}), ("top",), 4, ONE, store=store).images["top"]
        assert_array_equal(seen, resize_images(images, 4))


@pytest.mark.parametrize("shift", ["fixed-color", "rand-color"])
def test_rendered_is_what_the_simulator_shows(shift: str, store: ImageStore) -> None:
    config = FramesConfig(source="rendered", shift=shift, seed=3, workers=1)
    frames = prepare_frames(DATA, ("top",), 64, config, store=store)
    assert DATA.states is not None
    sim = make_simulator("pusht", image_size=96, shift=shift)
    for row, episode in enumerate(DATA.episode_index()):
        sim.set_appearance(appearance_seed(3, int(episode)))
        sim.set_state(DATA.states[row])
        shown = sim.observe().images["top"]
        assert_array_equal(frames.images["top"][row], resize_images(shown[None], 64)[0])
    sim.close()


def test_every_setting_of_rendering_has_its_own_images(store: ImageStore) -> None:
    base = FramesConfig(shift="rand-color", workers=1)
    images = [
        np.asarray(prepare_frames(DATA, ("top",), 32, config, store=store).images["top"])
        for config in (base, replace(base, seed=1), replace(base, render_size=128), replace(base, source="recorded"))
    ]
    for i in range(4):
        for j in range(i):
            assert not np.array_equal(images[i], images[j])


def test_several_cameras(store: ImageStore) -> None:
    data, calls = fakes.two_views(DATA), []
    assert not np.array_equal(data.images["top"], data.images["wrist"])
    frames = prepare_frames(data, ("wrist", "top"), 32, ONE, lambda *a: calls.append(a), store)
    assert list(frames.images) == ["wrist", "top"]
    for camera in frames.images:
        assert_array_equal(frames.images[camera], resize_images(data.images[camera], 32))
    assert calls == [(8, 16), (16, 16)]  # steps done of both
    only = prepare_frames(data, ("wrist",), 32, ONE, lambda *a: calls.append(a), store)
    assert_array_equal(only.images["wrist"], frames.images["wrist"])
    assert len(calls) == 2  # from the store
    with pytest.raises(DataError, match=r"no usable images of camera 'side' and simulator 'pusht' cannot render it"):
        prepare_frames(data, ("top", "side"), 32, ONE, store=store)


def test_shape_of_images_before_they_are_resized() -> None:
    data = fakes.two_views(DATA)
    wide = data.with_images({**data.images, "wrist": data.images["wrist"][:, :32]})
    assert aspect(data, ("top", "wrist"), ONE) == 1.0
    assert aspect(wide, ("wrist",), ONE) == 1.5
    assert aspect(wide, ("top",), replace(ONE, shift="rand-color")) == 1.0  # rendered
    assert aspect(wide, ("top", "wrist"), ONE) == (1.0, 1.5)


def test_unknown_shift(store: ImageStore) -> None:
    with pytest.raises(ConfigError, match="unknown shift 'rand-light': available are"):
        prepare_frames(DATA, ("top",), 32, FramesConfig(shift="rand-light", workers=1), store=store)


@pytest.mark.parametrize("shift", ["fixed", "fixed-color", "dynamic", "rotation"])
def test_every_shift_but_the_plain_appearance_is_drawn(shift: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "make_simulator", Other)
    assert needs_rendering(DATA, "top", FramesConfig(shift=shift)) is not shift.startswith("fixed")


class Other:
    """Push-T, as if it came from packages whose versions change what is seen."""

    packages = ("numpy", "not-installed")

    def __init__(self, name: str, *, image_size: int, shift: str) -> None:
        assert shift in SHIFTS
        sim = make_simulator(name, image_size=image_size)
        self.spec, self.close = replace(sim.spec, packages=self.packages), sim.close


def test_pictures_belong_to_the_versions_that_drew_them(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def stored(version: str) -> int:
        monkeypatch.setattr(frames_module, "installed_versions", lambda packages: {packages[0]: version})
        prepare_frames(DATA.with_images({}), ("top",), 32, ONE, store=store)
        return len([path for path in store.root.rglob("*") if path.name == "meta.json"])

    assert stored("1.0") == stored("2.0") == 1  # Push-T declares none: stores that were filled before stay valid
    monkeypatch.setattr(frames_module, "make_simulator", Other)
    assert [stored("1.0"), stored("1.0"), stored("2.0")] == [2, 2, 3]


def test_a_stopped_rendering_goes_on_with_whole_episodes(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = fakes.demonstrations(size=48, lengths=(3, 2, 4, 3, 2, 5, 3, 2, 4, 2))  # four at a time
    config = FramesConfig(shift="rand-color", workers=1)
    drawn: list[int] = []
    render = rendering._render

    def counted(settings: Any, bounds: Any, *arrays: Any) -> None:
        drawn.extend(episode for episode, _, _ in bounds)
        render(settings, bounds, *arrays)

    def stop(done: int, _: int) -> None:
        if done > 12:  # the second four
            raise KeyboardInterrupt

    monkeypatch.setattr(rendering, "_render", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare_frames(data, ["top"], 32, config, stop, store)
    (left,) = store.root.iterdir()
    # What was noted, and a line that was being written.
    assert (left / "done.txt").read_text() == "0 3\n4 7\n"
    (left / "done.txt").write_text("0 3\n4 7")
    drawn.clear()
    seen: list[int] = []
    frames = prepare_frames(data, ["top"], 32, config, lambda done, _: seen.append(done), store)
    assert drawn == [4, 5, 6, 7, 8, 9]
    assert seen == [12, 24, 30]
    (entry,) = store.root.iterdir()
    assert {file.name for file in entry.iterdir()} >= {"images.npy"}
    assert not any(file.name in ("done.txt", ".lock") for file in entry.iterdir())
    whole = prepare_frames(data, ["top"], 32, config, store=ImageStore(tmp_path / "other"))
    assert_array_equal(frames.images["top"], whole.images["top"])


def test_several_renderings_of_a_state_are_learned_from_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLASSACT_CACHE", str(tmp_path))
    made = from_preset("debug", shift="rand-color", data="pusht-expert", episodes=3, heldout=1)
    once = RunData(made, quiet=True).recorded
    made = replace(made, frames=replace(made.frames, renderings=2, workers=1))
    source = RunData(made, quiet=True)
    seen, held = source.frames(), source.heldout()
    n = seen.num_steps // 2
    assert seen.lengths.tolist() == 2 * once.lengths[:2].tolist()
    assert np.array_equal(seen.states[:n], seen.states[n:])  # type: ignore[index]
    pictures = np.asarray(seen.images["top"])
    assert np.abs(pictures[:n].astype(int) - pictures[n:]).mean() > 5  # other colours
    assert held is not None
    assert held.lengths.tolist() == once.lengths[2:].tolist()
    assert np.array_equal(held.actions, once.actions[-held.num_steps :])
    # A batch has each of its states in both.
    training: Any = SimpleNamespace(demonstrations=seen, config=made.pretrain, renderings=2)
    batches = Trainer.batches(training, 0)
    for _ in range(3):
        first, second = next(batches).reshape(-1, 2).T
        assert len(first) == made.pretrain.batch_size // 2 == len(set(first.tolist()))
        assert np.array_equal(second, first + n)
        assert first.max() < n
    odd = replace(made, pretrain=replace(made.pretrain, batch_size=31))
    with pytest.raises(ConfigError, match="a batch of 31 images cannot show each state in 2 renderings"):
        _ = RunData(odd).recorded
    recorded = replace(made, frames=replace(made.frames, source="recorded", shift="fixed-color"))
    monkeypatch.setattr(data_module, "read_demonstrations", lambda *_, **__: fakes.demonstrations())
    with pytest.raises(ConfigError, match="2 renderings asked, but images of camera 'top' are taken as recorded"):
        _ = RunData(recorded).recorded
    with pytest.raises(ConfigError, match="renderings"):
        FramesConfig(renderings=0)
