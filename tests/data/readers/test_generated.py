from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fakes
from classact.data.actions import ActionSpace
from classact.data.readers import declared_simulator, first_episodes, generated, last_episodes, read_demonstrations
from classact.data.readers.generated import EMBEDDED, load_embedded
from classact.data.schema import Schema
from classact.data.types import Demonstrations, ImageArray
from classact.errors import ConfigError, DataError

VERSIONS = {"robosuite": "1.5.2", "mujoco": "3.8.1"}


def recorded() -> Demonstrations:
    schema = Schema(("top",), (("agent_pos", 2),), 3, ActionSpace.points())
    data = fakes.demonstrations().with_images({})
    words = np.arange(15, dtype=np.float32).reshape(5, 3)
    return replace(data, schema=schema, language=words, simulator="pusht", versions=VERSIONS)


def draw(camera: str, frames: ImageArray) -> None:
    assert camera in ("top", "wrist")
    frames[:] = np.arange(len(frames), dtype=np.uint8)[:, None, None, None]
    frames[:, 0, 0, 0] = camera == "wrist"


IMAGES = generated.Images("rand-color", 6, 4, ("top", "wrist"), draw)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("generated")
    facts = {"not_kept": {"no way": 3}}
    seeds, words = [0, 2, 3, 7, 9], ["go", "go", "stop", "go", "stop"]
    generated.write(folder / "walks.npz", recorded(), seeds=seeds, instructions=words, facts=facts)
    generated.write(folder / "seen", recorded(), seeds=seeds, instructions=words, facts=facts, images=IMAGES)
    return folder / "walks.npz", folder / "seen"


def test_what_is_written_is_read(written: tuple[Path, Path]) -> None:
    data, wanted = read_demonstrations(written[0]), recorded()
    assert data.fingerprint() == wanted.fingerprint()
    assert (data.name, data.source) == ("walks", str(written[0]))
    assert (data.schema, data.schema.assumption) == (wanted.schema, "")
    assert (data.simulator, dict(data.versions), data.images_shift) == ("pusht", VERSIONS, "")
    assert not data.images
    header = generated.read_header(written[0])
    assert header["seeds"] == [0, 2, 3, 7, 9]
    assert header["instructions"] == ["go", "go", "stop", "go", "stop"]
    assert (header["not_kept"], header["images"]) == ({"no way": 3}, None)


def test_a_header_is_read_alone(written: tuple[Path, Path], tmp_path: Path) -> None:
    """What names the simulator of a large file decompresses none of its arrays."""
    file = tmp_path / "walks.npz"
    content = bytearray(written[0].read_bytes())
    with zipfile.ZipFile(written[0]) as archive:
        start = archive.getinfo("states.npy").header_offset
    content[start + 100 : start + 400] = bytes(300)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"walks\.npz cannot be read"):
        read_demonstrations(file)
    assert declared_simulator(file) == "pusht"
    assert generated.read_header(file)["seeds"] == [0, 2, 3, 7, 9]


def test_images_are_memory_mapped(written: tuple[Path, Path]) -> None:
    data = read_demonstrations(written[1])
    assert (data.name, data.images_shift, data.schema.cameras) == ("seen", "rand-color", ("top", "wrist"))
    for camera, mark in (("top", 0), ("wrist", 1)):
        array = data.images[camera]
        assert isinstance(array, np.memmap)
        assert array.shape == (data.num_steps, 6, 6, 3)
        assert (array[:, 0, 0, 0] == mark).all()
        assert (array[:, 3, 3, 1] == np.arange(data.num_steps)).all()
    few = read_demonstrations(written[1], episodes=2)
    assert few.images["top"].shape == (55, 6, 6, 3)
    assert (few.simulator, few.images_shift) == ("pusht", "rand-color")
    assert read_demonstrations(written[1]).fingerprint() == read_demonstrations(written[0]).fingerprint()


def test_where_data_come_from_stays_with_them() -> None:
    data = replace(recorded(), images_shift="dynamic")
    for part in (first_episodes(data, 2), last_episodes(data, 2), data.subset([3, 1])):
        assert (part.simulator, part.versions, part.images_shift) == ("pusht", VERSIONS, "dynamic")
    other = data.with_images({})
    assert (other.simulator, other.versions, other.images_shift) == ("pusht", VERSIONS, "")
    assert data.with_images({}, shift="rotation").images_shift == "rotation"
    assert data.fingerprint() == replace(data, simulator="", versions={}, images_shift="").fingerprint()


def test_episodes(written: tuple[Path, Path]) -> None:
    data = read_demonstrations(written[0], episodes=3)
    assert (len(data), data.num_steps, dict(data.versions)) == (3, 62, VERSIONS)
    with pytest.raises(ConfigError, match=r"asked for the first 6 episodes, but walks .* has 5"):
        read_demonstrations(written[0], episodes=6)


def test_push_ts_own_format_is_read(tmp_path: Path) -> None:
    shutil.copy(EMBEDDED, tmp_path / "mine.npz")
    data = read_demonstrations(tmp_path / "mine.npz", episodes=4)
    assert (data.name, len(data)) == ("mine", 4)
    assert np.array_equal(data[3].actions, load_embedded()[3].actions)
    assert generated.read_header(tmp_path / "mine.npz")["attempts"] == 605


def test_every_damaged_byte_is_found(written: tuple[Path, Path], tmp_path: Path) -> None:
    content, wanted = written[0].read_bytes(), recorded()
    file = tmp_path / "walks.npz"
    found = 0
    for at in range(7, len(content), 97):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            data = read_demonstrations(file)
        except DataError:
            found += 1
        else:  # dates and attributes of the archive, which nothing reads
            assert data.fingerprint() == wanted.fingerprint()
            assert dict(data.versions) == VERSIONS
    assert found > 0.9 * len(range(7, len(content), 97))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9, 0.999])
def test_truncated_files(written: tuple[Path, Path], tmp_path: Path, share: float) -> None:
    content = written[0].read_bytes()
    file = tmp_path / "cut.npz"
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"cut\.npz cannot be read \(.*\): it is damaged"):
        read_demonstrations(file)


def test_damaged_folders(written: tuple[Path, Path], tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        shutil.copytree(written[1], tmp_path / name)
        return tmp_path / name

    with (broken("flipped") / "images-wrist.npy").open("r+b") as file:
        file.seek(500)
        file.write(b"\xff")
    with pytest.raises(DataError, match=r"images-wrist.npy has SHA-256 .*content is damaged. Copy or generate it"):
        read_demonstrations(tmp_path / "flipped")
    (broken("lacking") / "images-top.npy").unlink()
    with pytest.raises(DataError, match=r"images-top.npy is missing"):
        read_demonstrations(tmp_path / "lacking")
    with (broken("short") / "images-top.npy").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(DataError, match=r"images-top.npy has 1,000 bytes, expected"):
        read_demonstrations(tmp_path / "short")
    (broken("unsealed") / "checksums.json").unlink()
    with pytest.raises(DataError, match=r"checksums.json does not exist"):
        read_demonstrations(tmp_path / "unsealed")


def changed(source: Path, out: Path, header: dict[str, Any] | None = None, **arrays: Any) -> Path:
    """A copy with other arrays (None: left out) and header entries."""
    with np.load(source) as content:
        kept = {key: content[key] for key in content} | arrays
    text = {**json.loads(kept["header"].tobytes()), **(header or {})}
    kept["header"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    np.savez(out, **{key: value for key, value in kept.items() if value is not None})
    return out


def test_files_of_others(written: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    np.savez(out, first=np.zeros(3), second=np.zeros(2))
    with pytest.raises(DataError, match="holds no demonstrations by classact: its arrays are first, second, expected"):
        read_demonstrations(out)
    changed(written[0], out, {"format": "classact-demonstrations-9"})
    with pytest.raises(DataError, match=r"got 'classact-demonstrations-9'\. Use a newer classact"):
        read_demonstrations(out)
    changed(written[0], out, states=None)
    with pytest.raises(DataError, match="expected array 'states' of dtype float64, got nothing"):
        read_demonstrations(out)
    changed(written[0], out, actions=recorded().actions.astype(np.float64))
    with pytest.raises(DataError, match="expected array 'actions' of dtype float32, got dtype float64"):
        read_demonstrations(out)
    changed(written[0], out, seeds=np.arange(4))
    with pytest.raises(DataError, match="there are 4 seeds for 5 episodes"):
        read_demonstrations(out)
    changed(written[0], out, {"schema": {"cameras": []}})
    with pytest.raises(DataError, match=r"x\.npz: schema: field 'proprioception' is missing"):
        read_demonstrations(out)
    with pytest.raises(
        DataError, match=r"is in no known format: it is a folder that holds x\.npz, which looks readable"
    ):
        read_demonstrations(tmp_path)


def test_no_layout(written: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"walks.npz \(classact\) takes none"):
        read_demonstrations(written[0], layout=tmp_path / "layout.json")


def test_nothing_stays_of_a_failed_write(tmp_path: Path) -> None:
    def fail(camera: str, frames: ImageArray) -> None:  # noqa: ARG001
        raise RuntimeError("no pictures")

    with pytest.raises(RuntimeError, match="no pictures"):
        generated.write(tmp_path / "x", recorded(), seeds=range(5), images=replace(IMAGES, draw=fail))
    assert not list(tmp_path.iterdir())
