"""Inputs of every format that may not be read, lie in odd places, or have foreign files beside them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
from hdf5_files import (
    demo,
    env_args,
    episode,
    libero_attributes,
    libero_demo,
    write_episode,
    write_robomimic,
)
from layout_files import write_real_pusht, write_umi
from lerobot_files import episode as episode_of_lerobot
from lerobot_files import write_v3

import fakes
from classact.cli.main import main
from classact.data.images import Entry, ImageStore
from classact.data.readers import READERS, declared_simulator, generated, read_demonstrations, reader
from classact.errors import ConfigError, DataError, StorageError
from classact.utils.inputs import cannot_read, input_path
from classact.utils.storage import read_arrays, read_json, verify_folder, write_arrays, write_folder

TASK = "pick_up_the_ketchup_and_place_it_in_the_basket"


def _zarr(folder: Path) -> Path:
    fakes.write_zarr(folder / "a.zarr", fakes.demonstrations(0, 8, (3, 4)))
    return folder / "a.zarr"


def _zip(folder: Path) -> Path:
    return Path(shutil.make_archive(str(_zarr(folder)), "zip", folder / "a.zarr"))


def _aloha(folder: Path) -> Path:
    (folder / "real").mkdir()
    for i in (9, 10, 0):
        write_episode(folder / "real" / f"episode_{i}.hdf5", episode(i + 2, i))
    return folder / "real"


def _libero(folder: Path) -> Path:
    (folder / "suite").mkdir()
    for name in (TASK, "open_the_drawer"):
        path = folder / "suite" / f"{name}_demo.hdf5"
        write_robomimic(path, {"demo_0": libero_demo(4, 0)}, attributes=libero_attributes(name, name))
    return folder / "suite"


def _robomimic(folder: Path) -> Path:
    return write_robomimic(folder / "a.hdf5", {"demo_0": demo(3, 0)}, attributes=env_args())


def _umi(folder: Path) -> Path:
    return write_umi(folder / "umi.zarr.zip", (3, 4))


def _real_pusht(folder: Path) -> Path:
    return write_real_pusht(folder / "real_pusht", (3, 4))


def _hdf5(folder: Path) -> Path:
    (folder / "arms").mkdir()
    for i in (1, 10, 2):
        write_episode(folder / "arms" / f"{i}.hdf5", episode(i + 2, i))
    return folder / "arms"


def _lerobot(folder: Path) -> Path:
    return write_v3(folder / "lerobot", [episode_of_lerobot(n, n) for n in (3, 4)])


def _npz(folder: Path) -> Path:
    data = fakes.demonstrations(0, 8, (3, 4)).with_images({})
    generated.write(folder / "a.npz", data, seeds=[0, 1])
    return folder / "a.npz"


def _images(folder: Path) -> Path:
    data = fakes.demonstrations(0, 8, (3, 4))
    images = generated.Images("fixed-color", 8, 0, ("top",), lambda _, out: out.fill(3))
    generated.write(folder / "drawn", data.with_images({}), seeds=[0, 1], images=images)
    return folder / "drawn"


FORMATS: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "zarr": (_zarr, ("data/img/0.0.0.0", "data/action/.zarray", "data/action", "data", "")),
    "zip": (_zip, ("",)),
    "aloha": (_aloha, ("episode_9.hdf5", "")),
    "libero": (_libero, (f"{TASK}_demo.hdf5", "")),
    "robomimic": (_robomimic, ("",)),
    "umi": (_umi, ("",)),
    "real-pusht": (_real_pusht, ("replay_buffer.zarr/data/action/.zarray", "videos/0/0.mp4", "")),
    "hdf5": (_hdf5, ("1.hdf5", "")),
    "lerobot": (_lerobot, ("meta/info.json", "data/chunk-000/file-000.parquet", "")),
    "npz": (_npz, ("",)),
    "images": (_images, ("demonstrations.npz", "images-top.npy", "checksums.json", "")),
}


WRITTEN = {
    "diffusion-policy-zarr": ("zarr", "zip", "umi", "real-pusht"),
    "classact": ("npz", "images"),
    "lerobot": ("lerobot",),
    "libero": ("libero",),
    "aloha": ("aloha",),
    "robomimic": ("robomimic",),
    "hdf5": ("hdf5",),
}
"""Format -> those of FORMATS that are of it."""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that another user can get to, unlike pytest's, as none but root's own permissions are ever refused."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        (Path(name) / "cache").mkdir(mode=0o777)
        (Path(name) / "cache").chmod(0o777)
        monkeypatch.setenv("CLASSACT_CACHE", f"{name}/cache")
        yield Path(name)


@pytest.fixture
def as_nobody() -> Iterator[Callable[[], None]]:
    """Root may read everything; until the test ends, this process then is somebody else."""
    if os.getuid() != 0:
        yield lambda: None
        return
    yield lambda: os.seteuid(65534)
    os.seteuid(0)


def message(source: str | Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        read_demonstrations(source, **options)  # type: ignore[arg-type]
    return str(caught.value)


def clear(said: str) -> None:
    assert "\n" not in said
    for wrong in ("damage", "truncated", "Copy or download", "Errno"):
        assert wrong not in said


@pytest.mark.parametrize("name", READERS)
def test_every_format_is_recognised_and_read(folder: Path, name: str) -> None:
    for kind in WRITTEN[name]:
        path = FORMATS[kind][0](folder)
        matching = [other for other in READERS if reader(other).matches(path)]
        assert matching in ([name], [name, "hdf5"])  # the last reads by declaration what has a reader of its own
        data = read_demonstrations(path)
        assert data.source == str(path)
        assert data.simulator in ("", declared_simulator(path))  # none, where there are no states of it
        assert data.schema.proprioception_dim == data.proprioception.shape[1]
        assert data.schema.actions is None or data.schema.actions.dim == data.actions.shape[1]
        assert set(data.images) <= set(data.schema.cameras)
        # What is asked for is what comes first, or is refused.
        first = read_demonstrations(path, episodes=1)
        assert len(first) == 1
        assert np.array_equal(first.actions, data.actions[: first.num_steps])
        assert np.array_equal(first.proprioception, data.proprioception[: first.num_steps])
        for camera, images in first.images.items():
            assert np.array_equal(images, data.images[camera][: first.num_steps])
        with pytest.raises(ConfigError, match=f"asked for .*{len(data) + 1} .*{len(data)}"):
            read_demonstrations(path, episodes=len(data) + 1)
    assert reader(name).DESCRIPTION
    assert "\n" not in reader(name).DESCRIPTION
    assert not reader(name).matches(Path(__file__))


@pytest.mark.parametrize(("kind", "part"), [(kind, part) for kind, (_, parts) in FORMATS.items() for part in parts])
def test_without_permission(folder: Path, as_nobody: Callable[[], None], kind: str, part: str) -> None:
    path = FORMATS[kind][0](folder)
    read_demonstrations(path)  # imports what another user may not
    shutil.rmtree(folder / "cache" / "images", ignore_errors=True)
    place = path / part if part else path
    mode = place.stat().st_mode
    place.chmod(0)
    as_nobody()
    said = message(path)
    clear(said)
    assert f"{place}" in said
    assert "cannot be read (Permission denied)" in said
    assert "Change its permissions" in said
    declared_simulator(path)  # says nothing, for it shows when the data are read
    if os.getuid() == 0:
        os.seteuid(0)
    place.chmod(mode)
    read_demonstrations(path)


@pytest.mark.parametrize("mode", [0o400, 0o100])
def test_folders_that_may_be_listed_or_entered_alone(folder: Path, as_nobody: Callable[[], None], mode: int) -> None:
    path = _aloha(folder)
    if os.getuid() == 0:
        os.chown(path, 65534, 65534)
    path.chmod(mode)
    as_nobody()
    said = message(path)
    clear(said)
    assert f"{path} cannot be read (Permission denied)" in said


@pytest.mark.parametrize("kind", ["aloha", "libero", "robomimic"])
def test_a_file_that_is_being_written(folder: Path, kind: str) -> None:
    path = FORMATS[kind][0](folder)
    file = path if path.is_file() else sorted(path.iterdir())[0]
    hold = "import sys, h5py; f = h5py.File(sys.argv[1], 'r+'); print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout
        writer.stdout.readline()
        said = message(path)
        writer.communicate()
    clear(said)
    assert f"{file} cannot be read: another program (a recorder, a notebook) has it open for writing. Close it" in said
    read_demonstrations(path)


def test_a_file_whose_recorder_was_killed(folder: Path) -> None:
    path = _robomimic(folder)
    kill = "import sys, os, h5py; f = h5py.File(sys.argv[1], 'r+', libver='latest'); f.swmr_mode = True; os._exit(0)"
    with h5py.File(path, "w", libver="latest") as file:
        file["a"] = 1
    subprocess.run([sys.executable, "-c", kill, str(path)], check=True)
    said = message(path)
    clear(said)
    assert "marked as open for writing" in said
    assert "h5clear -s a.hdf5" in said


def _dangling(folder: Path) -> Path:
    (folder / "a.zarr").symlink_to("gone.zarr")
    return folder / "a.zarr"


def _circle(folder: Path) -> Path:
    (folder / "a.hdf5").symlink_to("b.hdf5")
    (folder / "b.hdf5").symlink_to("a.hdf5")
    return folder / "a.hdf5"


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.npz")
    return folder / "a.npz"


def _behind_a_file(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "a.zarr"


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (
            lambda _: "~nosuchuser/a.zarr",
            "~nosuchuser/a.zarr cannot be looked up: user 'nosuchuser' has no home",
        ),
        (lambda _: "a" * 300, "(File name too long)"),
        (lambda folder: folder / ("a" * 300) / "b", "(File name too long)"),
        (lambda _: "a\0b", "'a\\x00b' is no path: it holds a null character"),
        (lambda _: "", "'' is no path: it is empty"),
        (
            _dangling,
            "cannot be read (No such file or directory). It is a link to gone.zarr, which does not",
        ),
        (_circle, "Its symbolic links lead in a circle"),
        (_pipe, "a.npz is neither a file nor a folder, but a device, pipe or socket"),
        (lambda _: os.devnull, "is neither a file nor a folder"),
        (_behind_a_file, "Part of the path is a file, not a folder"),
    ],
)
def test_paths_that_lead_nowhere(
    folder: Path, tmp_path: Path, place: Callable[[Path], str | Path], expected: str
) -> None:
    source = place(folder)
    said = message(source)
    clear(said)
    assert expected in said
    assert declared_simulator(source) == ""
    with pytest.raises(ConfigError, match=r"layout|no path|looked up"):
        read_demonstrations(_robomimic(tmp_path), layout=source)


def test_a_path_may_begin_with_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    _zarr(folder).rename(folder / "~old.zarr")
    assert read_demonstrations("~old.zarr").num_steps == 7
    monkeypatch.setenv("HOME", str(folder))
    (folder / "~old.zarr").rename(folder / "new.zarr")
    assert read_demonstrations("~/new.zarr").num_steps == 7


@pytest.mark.parametrize(("kind", "name"), [("aloha", "episode_9.hdf5"), ("libero", f"{TASK}_demo.hdf5")])
def test_an_episode_that_is_a_dangling_link_is_not_left_out(folder: Path, kind: str, name: str) -> None:
    path = FORMATS[kind][0](folder)
    (path / name).unlink()
    (path / name).symlink_to("gone")
    assert f"{path / name} cannot be read (No such file or directory). It is a link to gone" in message(path)


def test_a_layout_in_the_store_that_is_a_dangling_link_is_not_passed_over(folder: Path) -> None:
    path = _zarr(folder)
    (path / "classact.json").symlink_to("gone.json")
    assert "classact.json cannot be read (No such file or directory). It is a link to gone.json" in message(path)


def test_commands_say_it_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a" * 300
    for command in (("data", "info", name), ("finetune", name), ("evaluate", name)):
        assert main(list(command)) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "File name too long" in said


def test_files_of_runs_that_may_not_be_read(folder: Path, as_nobody: Callable[[], None]) -> None:
    write_folder(folder / "encoder", lambda path: (path / "a").write_text("1") and None)
    write_arrays(folder / "a.safetensors", {"a": np.zeros(3)})
    read_arrays(folder / "a.safetensors")
    for path in (folder / "encoder" / "a", folder / "a.safetensors"):
        path.chmod(0)
    as_nobody()
    for read in (
        lambda: verify_folder(folder / "encoder"),
        lambda: read_json(folder / "encoder" / "a", ConfigError),
        lambda: read_arrays(folder / "a.safetensors", ConfigError),
    ):
        with pytest.raises(DataError, match=r"cannot be read \(Permission denied\)\. Change its"):
            read()


def test_a_cache_of_another_user_is_not_called_damaged(folder: Path, as_nobody: Callable[[], None]) -> None:
    store = ImageStore(folder / "store")
    entry = Entry({"kind": "test"}, (2, 4, 4, 3), lambda out: out.fill(1))
    store.get_or_create(entry)
    store.folder(entry).chmod(0)
    as_nobody()
    with pytest.raises(StorageError, match=r"\(Permission denied\).* set CLASSACT_CACHE to a folder of your own"):
        store.get_or_create(entry)


def test_reasons_without_a_number_are_those_of_the_library() -> None:
    assert cannot_read("a", OSError("odd")) == "a cannot be read (odd)."
    with pytest.raises(DataError, match=r"gone does not exist\. More\.$"):
        input_path("gone", missing=lambda: "More.")


# Foreign files

FOREIGN = {
    **dict.fromkeys(("._episode_0.hdf5", f"._{TASK}_demo.hdf5", ".DS_Store", "Thumbs.db"), b"\x00" * 10),
    **dict.fromkeys(("notes.txt", "episode_3.hdf5.tmp", "a_demo.hdf5.part", "._a.zarr", "README"), b"words"),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_foreign_files_change_nothing(folder: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    path = FORMATS[kind][0](folder)
    before = read_demonstrations(path)
    caplog.clear()
    for place in {folder, path, path / "data", path / "data/img"}:
        if place.is_dir():
            for name, content in FOREIGN.items():
                (place / name).write_bytes(content)
            (place / ".ipynb_checkpoints").mkdir()
            (place / ".ipynb_checkpoints" / "episode_0.hdf5").touch()
            (place / "episode_1.hdf5").mkdir()
    hidden = path / "data" / ".img"
    if kind == "zarr":
        shutil.copytree(path / "data/img", hidden)
    after = read_demonstrations(path)
    assert after.fingerprint() == before.fingerprint()
    assert list(after.images) == list(before.images)
    assert "left out" not in caplog.text
    assert declared_simulator(path) == declared_simulator(path)


def test_foreign_files_in_a_zip(folder: Path) -> None:
    path = _zarr(folder)
    (folder / "__MACOSX" / "a.zarr").mkdir(parents=True)
    for name in ("._.zgroup", "._data", "._.zattrs"):
        (folder / "__MACOSX" / "a.zarr" / name).write_bytes(b"\0")
    archive = Path(shutil.make_archive(str(folder / "b.zarr"), "zip", folder, "a.zarr"))
    subprocess.run(
        [sys.executable, "-m", "zipfile", "-c", str(archive), str(folder / "__MACOSX"), str(path)], check=True
    )
    assert read_demonstrations(archive).fingerprint() == read_demonstrations(path).fingerprint()


@pytest.mark.parametrize(
    ("kind", "name"), [("aloha", "episode_9 (1).hdf5"), ("aloha", "demo.HDF5"), ("libero", f"{TASK}_demo (1).hdf5")]
)
def test_what_looks_like_an_episode_and_is_left_out_is_said(
    folder: Path, kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = FORMATS[kind][0](folder)
    before = read_demonstrations(path)
    (path / name).write_bytes(sorted(path.iterdir())[0].read_bytes())
    assert read_demonstrations(path).fingerprint() == before.fingerprint()
    assert f"{path}: 1 HDF5 files are not named like the others and are left out: {name}" in caplog.text


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("aloha", "episode_9.hdf5", "episode_09.hdf5"),
        ("aloha", "episode_9.hdf5", "episode_9.h5"),
        ("libero", f"{TASK}_demo.hdf5", f"{TASK}_demo.h5"),
    ],
)
def test_one_episode_under_two_names_is_refused(folder: Path, kind: str, old: str, new: str) -> None:
    path = FORMATS[kind][0](folder)
    shutil.copy(path / old, path / new)
    said = message(path)
    assert old in said
    assert new in said
    assert "are one episode or task. Remove one of them" in said


def test_episodes_come_in_the_order_of_their_numbers(folder: Path) -> None:
    assert read_demonstrations(_aloha(folder)).lengths.tolist() == [2, 11, 12]


# Content and place


@pytest.mark.parametrize("kind", ["zarr", "zip", "aloha"])
def test_images_that_were_repaired_in_place_with_the_old_times_are_decoded_again(folder: Path, kind: str) -> None:
    path = FORMATS[kind][0](folder)
    (before,) = (np.array(images) for images in read_demonstrations(path).images.values())
    times = {file: file.stat().st_mtime_ns for file in (folder, *folder.rglob("*")) if file.is_file()}
    if kind == "aloha":
        with h5py.File(path / "episode_9.hdf5", "r+") as file:
            images = file["observations/images/top"]
            images[4] = 255 - images[4]
    else:
        data = fakes.demonstrations(0, 8, (3, 4))
        fixed = np.array(data.images["top"])
        fixed[5] = 255 - fixed[5]
        shutil.rmtree(folder / "a.zarr")
        fakes.write_zarr(folder / "a.zarr", data.with_images({"top": fixed}))
        if kind == "zip":
            shutil.make_archive(str(folder / "a.zarr"), "zip", folder / "a.zarr")
    for file, at in times.items():
        if file.exists():
            os.utime(file, ns=(at, at))
    (after,) = read_demonstrations(path).images.values()
    assert (after != before).any(axis=(1, 2, 3)).sum() == 1


# Spelling and place


@pytest.mark.parametrize("kind", FORMATS)
def test_spelling_of_a_path_makes_no_other_data(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = FORMATS[kind][0](folder)
    before = read_demonstrations(path)
    entries = sorted((folder / "cache").rglob("*"))
    (folder / "link").symlink_to(folder)
    (folder / f"again{''.join(path.suffixes)}").symlink_to(path)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    name = path.name
    spelled = [name, f"./{name}", f"link/{name}", f"cache/../{name}", f"~/{name}", folder / "link" / name]
    spelled += [f"again{''.join(path.suffixes)}"]
    spelled += [f"{name}/", f"{folder}//{name}"] if path.is_dir() else []
    for source in spelled:
        data = read_demonstrations(source)
        assert data.fingerprint() == before.fingerprint()
        assert data.name == before.name or "again" in str(source)
        assert sorted((folder / "cache").rglob("*")) == entries, source
    if path.is_dir():
        monkeypatch.chdir(path)
        assert read_demonstrations(".").name == before.name
        assert sorted((folder / "cache").rglob("*")) == entries
