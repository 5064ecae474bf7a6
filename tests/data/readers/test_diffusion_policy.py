from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hdf5_files import refusal
from numcodecs import Blosc, Zlib
from numpy.testing import assert_array_equal

import classact.data.readers
from classact.cli.main import main
from classact.data.actions import ActionSpace, Part
from classact.data.images import ImageStore, resized
from classact.data.layout import LAYOUT_FILE, Columns, Layout
from classact.data.readers import (
    READERS,
    declared_simulator,
    first_episodes,
    last_episodes,
    read_demonstrations,
    reader,
    takes_layout,
)
from classact.data.readers.diffusion_policy import PUSH_T, read
from classact.errors import ConfigError, DataError
from classact.utils.codec import to_json

STEPS, ENDS = 20, (8, 13, 20)
ZSTD = Blosc("zstd")

Arrays = dict[str, np.ndarray]


def arrays(**changed: np.ndarray | None) -> Arrays:
    """A tiny Push-T store; ``changed`` replaces arrays of ``data``, or leaves them out where None."""
    rng = np.random.default_rng(0)
    content: dict[str, Any] = {
        "img": rng.integers(0, 256, (STEPS, 6, 8, 3)).astype(np.float32),
        "state": rng.uniform(1, 512, (STEPS, 5)).astype(np.float32),
        "action": rng.uniform(1, 512, (STEPS, 2)).astype(np.float32),
        "keypoint": rng.uniform(1, 512, (STEPS, 9, 2)).astype(np.float32),
        "episode_ends": np.array(ENDS, np.int64),
    }
    content.update(changed)
    return {key: value for key, value in content.items() if value is not None}


def write(
    path: Path, content: Arrays, *, rows: int = 7, compressor: Any = ZSTD, version: Any = 2, shards: int = 0
) -> Path:
    """Write a Zarr store with ``rows`` rows per chunk, ``shards`` chunks per file (version 3); a folder, or a zip file
    where the name says so.
    """
    folder = path.with_suffix("") if path.suffix == ".zip" else path
    group = zarr.open_group(str(folder), mode="w", zarr_format=version)
    group.create_group("data")
    group.create_group("meta")
    for key, value in content.items():
        array = group.create_array(
            "meta/episode_ends" if key == "episode_ends" else f"data/{key}",
            shape=value.shape,
            chunks=(min(rows, max(1, len(value))), *value.shape[1:]),
            dtype=value.dtype,
            compressors=compressor,
            **({"shards": (shards * min(rows, len(value)), *value.shape[1:])} if shards else {}),
        )
        array[...] = value
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(folder))
        shutil.rmtree(folder)
    return path


@pytest.fixture(params=["tiny.zarr", "tiny.zarr.zip"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


def edit(path: Path, member: str, change: Callable[[bytes], bytes | None]) -> None:
    """Change or delete a file of a folder or zip store behind Zarr's back."""
    if path.is_dir():
        content = change((path / member).read_bytes())
        (path / member).unlink()
        if content is not None:
            (path / member).write_bytes(content)
        return
    with zipfile.ZipFile(path) as archive:
        members: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    members[member] = change(members[member] or b"")
    with zipfile.ZipFile(path, "w") as archive:
        for name, kept in members.items():
            if kept is not None:
                archive.writestr(name, kept)


message = partial(refusal, read)


# What is read


def test_round_trip(target: Path) -> None:
    content = arrays()
    demos = read_demonstrations(write(target, content))
    assert demos.name == "tiny"
    assert demos.source == str(target)
    assert_array_equal(demos.episode_ends, ENDS)
    assert_array_equal(demos.actions, content["action"])
    assert_array_equal(demos.states, content["state"])
    assert_array_equal(demos.proprioception, content["state"][:, :2])
    assert list(demos.images) == ["top"]
    assert_array_equal(demos.images["top"], content["img"].astype(np.uint8))


def test_of_the_first_episodes_no_other_file_counts(target: Path) -> None:
    content = arrays()
    demos = read(write(target, content), episodes=1)
    assert_array_equal(demos.images["top"], content["img"][:8])
    assert demos.images["top"].digest() == read(target, episodes=1).images["top"].digest()  # type: ignore[union-attr]
    before = demos.images["top"].digest()  # type: ignore[union-attr]
    edit(target, "data/img/2.0.0.0", lambda _: None)
    assert read(target, episodes=1).images["top"].digest() == before  # type: ignore[union-attr]
    edit(target, "data/img/1.0.0.0", lambda _: None)
    assert "data/img/1.0.0.0 is missing (1 of 2 chunk files" in message(target, episodes=1)


@pytest.mark.parametrize("episodes", [0, -1, 4])
def test_number_of_episodes_out_of_range(tmp_path: Path, episodes: int) -> None:
    write(tmp_path / "a.zarr", arrays())
    with pytest.raises(ConfigError, match=rf"first {episodes} episodes, but a .* has 3. Ask for 1 to 3"):
        read_demonstrations(tmp_path / "a.zarr", episodes=episodes)


def test_changed_data_are_decoded_again(tmp_path: Path) -> None:
    content = arrays()
    path = write(tmp_path / "a.zarr", content)
    first = np.array(read(path).images["top"])
    write(path, arrays(img=255 - content["img"]))
    assert_array_equal(read(path).images["top"], 255 - first)


def test_zip_of_the_folder_itself(tmp_path: Path) -> None:
    content = arrays()
    folder = write(tmp_path / "inner.zarr", content)
    path = tmp_path / "outer.zarr.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    assert_array_equal(read(path).images["top"], content["img"])


@pytest.mark.parametrize("compressor", [None, Zlib(), Blosc("lz4")], ids=["none", "zlib", "lz4"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_compressors_and_image_types(tmp_path: Path, compressor: Any, dtype: type) -> None:
    content = arrays(img=arrays()["img"].astype(dtype))
    assert_array_equal(read(write(tmp_path / "a.zarr", content, compressor=compressor)).images["top"], content["img"])


def test_nested_chunk_names_and_chunks_across_a_frame(target: Path) -> None:
    content = arrays()
    folder = target.with_suffix("") if target.suffix == ".zip" else target
    path = write(folder, content)
    encoding = {"name": "v2", "separator": "/"}
    array = zarr.create_array(
        str(path), name="data/img", shape=(STEPS, 6, 8, 3), chunks=(6, 4, 8, 2), dtype="f4", zarr_format=2,
        chunk_key_encoding=encoding, overwrite=True,
    )  # fmt: skip
    array[...] = content["img"]
    assert (path / "data/img/3/1/0/1").is_file()
    assert_array_equal(read(path, episodes=1).images["top"], content["img"][:8])
    assert_array_equal(read(path).images["top"], content["img"])


def test_several_cameras_and_a_declared_layout(tmp_path: Path) -> None:
    content = arrays(state=None)
    content["wrist"] = content["img"][:, :4, :4].astype(np.uint8)
    content["pose"] = np.arange(STEPS * 3, dtype=np.float64).reshape(STEPS, 3)
    path = write(tmp_path / "a.zarr", content)
    layout = Layout(proprioception={"arm": "pose"}, cameras={"front": "img"})
    demos = read(path, layout=layout)
    assert sorted(demos.images) == ["front", "wrist"]
    assert_array_equal(demos.images["wrist"], content["wrist"])
    assert_array_equal(demos.proprioception, content["pose"])
    assert demos.proprioception.dtype == np.float32
    assert demos.states is None


@pytest.mark.parametrize("columns", [(0, 5), (-1,), ()])
def test_columns_that_do_not_exist(tmp_path: Path, columns: tuple[int, ...]) -> None:
    path = write(tmp_path / "a.zarr", arrays())
    layout = Layout(proprioception={"arm": Columns("state", columns)})
    expected = f"data/state has 5 columns, but proprioception 'arm' is declared as columns {columns}. Declare columns"
    assert expected in message(path, layout=layout)


# What data declare

DECLARED = {
    "action_space": "pose",
    "proprioception": {
        "arm": {"array": "robot", "columns": [2, 0]},
        "gripper": "opening",
        "joints": {"array": "data/joints"},
    },
    "language": "instruction",
    "cameras": {"front": "rgb"},
}


def robot_arrays(**changed: np.ndarray | None) -> Arrays:
    """Of a robot with two cameras, three keys, an instruction for each episode and 10-D poses."""
    rng = np.random.default_rng(1)
    words = rng.normal(size=(len(ENDS), 6)).astype(np.float32)
    robot: dict[str, Any] = {
        "img": None,
        "state": None,
        "keypoint": None,
        "rgb": rng.integers(0, 256, (STEPS, 6, 8, 3)).astype(np.uint8),
        "wrist": rng.integers(0, 256, (STEPS, 4, 4, 3)).astype(np.uint8),
        "robot": rng.normal(size=(STEPS, 4)),
        "opening": rng.uniform(size=STEPS).astype(np.float32),
        "joints": rng.normal(size=(STEPS, 7)).astype(np.float32),
        "instruction": np.repeat(words, np.diff(ENDS, prepend=0), axis=0),
        "action": ActionSpace.pose().orthogonalize(rng.normal(size=(STEPS, 10))).astype(np.float32),
    }
    return arrays(**(robot | changed))


def declare(path: Path, declared: Any) -> Path:
    path.write_text(declared if isinstance(declared, str) else json.dumps(declared))
    return path


@pytest.mark.parametrize("place", ["file", "store"])
def test_everything_declared_in_a_layout_file(target: Path, tmp_path: Path, place: str) -> None:
    content = robot_arrays()
    if place == "file":
        write(target, content)
        demos = read_demonstrations(target, layout=declare(tmp_path / "layout.json", DECLARED))
    elif target.suffix == ".zip":
        write(target, content)
        with zipfile.ZipFile(target, "a") as archive:
            archive.writestr(LAYOUT_FILE, json.dumps(DECLARED))
        demos = read_demonstrations(target)
    else:
        declare(write(target, content) / LAYOUT_FILE, DECLARED)
        demos = read_demonstrations(target)
    assert demos.schema.cameras == ("front", "wrist")
    assert demos.schema.proprioception == (("arm", 2), ("gripper", 1), ("joints", 7))
    assert (demos.schema.language, demos.schema.actions) == (6, ActionSpace.pose())
    assert demos.schema.assumption == ""
    assert demos.states is None
    parts = [content["robot"][:, [2, 0]], content["opening"][:, None], content["joints"]]
    assert_array_equal(demos.proprioception, np.concatenate(parts, axis=1).astype(np.float32))
    assert_array_equal(demos.language, content["instruction"][[0, *ENDS[:-1]]])
    assert_array_equal(demos.actions, content["action"])
    assert_array_equal(demos.images["front"], content["rgb"])
    assert_array_equal(demos.images["wrist"], content["wrist"])
    assert_array_equal(demos.schema.columns(("gripper",)), [2])


def test_data_info_prints_what_is_declared_and_what_was_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")

    def printed(*command: str) -> str:
        assert main(["data", "info", *command]) == 0
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    path = write(tmp_path / "a.zarr", robot_arrays())
    found = printed(str(path), "--layout", str(declare(tmp_path / "layout.json", DECLARED)))
    for words in (
        "camera front 8 x 6 pixels",
        "camera wrist 4 x 4 pixels",
        "proprioception keys arm 2, gripper 1, joints 7",
        "language 6 numbers for each episode",
        f"action space {ActionSpace.pose().describe()}",
        "assumed nothing: all of this is declared",
    ):
        assert words in found
    seven = write(tmp_path / "b.zarr", arrays(action=np.ones((STEPS, 7), np.float32)))
    found = printed(str(seven), "--layout", str(declare(tmp_path / "few.json", {"proprioception": {"arm": "state"}})))
    for words in (
        "proprioception keys arm 5",
        "language none",
        "action space none: each dimension is a number by itself",
        "assumed no action space is assumed: 7 action dimensions can mean several things",
    ):
        assert words in found
    assert "assumed Push-T's layout; assumed from D = 2" in printed(str(write(tmp_path / "c.zarr", arrays())))


def test_an_explicit_layout_goes_before_that_in_the_store(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", robot_arrays())
    declare(path / LAYOUT_FILE, DECLARED)
    own = {"proprioception": {"q": "joints"}, "find_cameras": False, "action_space": None}
    demos = read_demonstrations(path, layout=declare(tmp_path / "own.json", own))
    assert demos.schema.proprioception == (("q", 7),)
    assert (dict(demos.images), demos.schema.cameras, demos.language) == ({}, (), None)
    assert demos.schema.actions == ActionSpace.pose()
    assert "assumed from D = 10" in demos.schema.assumption


def test_language_of_each_episode_or_of_each_step(tmp_path: Path) -> None:
    steps = robot_arrays()
    rows = steps["instruction"][[0, *ENDS[:-1]]]
    path = write(tmp_path / "a.zarr", steps)
    layout = Layout.from_json(DECLARED)
    one = read(path, layout=layout)
    other = read(write(tmp_path / "b.zarr", robot_arrays(instruction=rows)), layout=layout)
    assert_array_equal(one.language, other.language)
    assert one.fingerprint() == other.fingerprint()
    assert_array_equal(read(path, layout=layout, episodes=2).language, rows[:2])
    changed = steps["instruction"].copy()
    changed[10, 3] += 1
    path = write(tmp_path / "c.zarr", robot_arrays(instruction=changed))
    found = message(path, layout=layout)
    assert "data/instruction differs within episode 1: step 10 holds another embedding than step 8" in found
    path = write(tmp_path / "d.zarr", robot_arrays(instruction=rows[:2]))
    assert (
        "data/instruction has shape (2, 6), expected one embedding for each of 3 episodes or for each of 20 steps"
        in (message(path, layout=layout))
    )
    path = write(tmp_path / "e.zarr", robot_arrays(instruction=steps["instruction"] * np.nan))
    assert "language[0, 0] is nan" in message(path, layout=layout)


def test_language_beside_the_episode_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", robot_arrays(instruction=None))
    words = np.random.default_rng(2).normal(size=(len(ENDS), 5))
    group = zarr.open_group(str(path), mode="a", zarr_format=2)
    group.create_array("meta/words", shape=words.shape, chunks=words.shape, dtype=words.dtype)[...] = words
    demos = read(path, layout=Layout.from_json(DECLARED | {"language": "meta/words"}))
    assert_array_equal(demos.language, words.astype(np.float32))


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"robot": None}, "data/robot is missing; arrays in data: action, instruction, joints, opening, rgb, wrist."),
        ({"instruction": None}, "data/instruction is missing"),
        ({"rgb": None}, "data/rgb is missing"),
        (
            {"opening": np.ones(STEPS - 1, np.float32)},
            "data/opening has shape (19,), but data/action has shape (20, 10)",
        ),
        ({"opening": np.ones((STEPS, 1, 1))}, "data/opening has shape (20, 1, 1) and dtype float64, expected (N, D)"),
        ({"rgb": np.ones((STEPS, 6, 8, 4), np.uint8)}, "data/rgb has shape (20, 6, 8, 4), expected images of shape"),
        (
            {"front": np.ones((STEPS, 6, 8, 3), "u1")},
            "data/front holds images, but camera 'front' is declared as data/rgb",
        ),
        ({"action": np.ones((STEPS, 7), np.float32)}, "declares actions of 10 dimensions"),
        ({"action": np.ones((STEPS, 10), np.float32)}, "rotation (dimensions 3:9) at index [0] is no 6-D rotation"),
    ],
)
def test_data_that_are_not_as_declared(tmp_path: Path, changed: dict[str, Any], expected: str) -> None:
    path = write(tmp_path / "a.zarr", robot_arrays(**changed))
    assert expected in message(path, layout=Layout.from_json(DECLARED))


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("{", r"layout\.json is not valid JSON \(Expecting property name"),
        ([], r"layout\.json: expected an object with the fields of Layout, got \[\]"),
        ({"camera": {}}, r"layout\.json: unknown field 'camera': available are 'accept', 'action', 'action_space', "),
        ({"action": 3}, r"layout\.json\.action: expected text, or an object with the fields of Columns, got 3"),
        ({"proprioception": {"x": []}}, r"layout\.json: proprioception 'x': expected at least one array, got an empty"),
        ({"action": [], "next_state": True}, r"layout\.json: next_state needs action"),
        ({"action": [], "action_space": "point"}, r"layout\.json: action_space says .* action is declared as none"),
        ({"action": ["a", "FILL IN"]}, r"layout\.json\.action\[1\]: 'FILL IN' stands where the name of an array"),
        ({"next_state": True}, r"layout\.json: next_state needs action"),
        ({"fps": 0}, r"layout\.json: fps is 0\.0, expected steps per second above 0"),
        ({"boundaries": "stops"}, r"layout\.json\.boundaries: unknown value 'stops': available are 'ends', 'last'"),
        ({"action": {"array": "a", "rotation": "quaternion"}}, r"action: a: unknown rotation 'quaternion'"),
        ({"cameras": {"front": {"scale": 255}}}, r"cameras\.front: a camera has an array or a video"),
        ({"bgr": True}, r"layout: unknown field 'bgr': available are 'action'"),
        ({"language": 3}, r"layout\.json\.language: expected text, got 3"),
        ({"cameras": ["rgb"]}, r"layout\.json\.cameras: expected an object, got \['rgb'\]"),
        ({"cameras": {"front": 1}}, r"cameras\.front: expected text, or an object with the fields of Camera, got 1"),
        ({"proprioception": "robot"}, r"proprioception: expected an object, got 'robot'"),
        (
            {"proprioception": {"arm": {"columns": [1]}}},
            r"proprioception\.arm: field 'array' is missing\.",
        ),
        (
            {"proprioception": {"arm": {"array": "robot", "column": 1}}},
            r"proprioception\.arm: unknown field 'column': available are 'array', 'columns', 'rotation'",
        ),
        (
            {"proprioception": {"arm": {"array": "robot", "columns": [0, True]}}},
            r"arm\.columns\[1\]: expected a whole number, got True",
        ),
        ({"proprioception": {"arm": {"array": "robot", "columns": {}}}}, r"columns: expected a list, got \{\}"),
        ({"find_cameras": 1}, r"find_cameras: expected true or false, got 1"),
        ({"action_space": "poses"}, r"layout\.json\.action_space: unknown action space 'poses': available are 'aloha'"),
        ({"action_space": {"part": []}}, r"layout\.json\.action_space: unknown field 'part'"),
        (
            {"action_space": 10},
            r"action_space: expected an object with the fields of ActionSpace, got 10",
        ),
    ],
)
def test_layouts_refused(tmp_path: Path, declared: Any, expected: str) -> None:
    path = write(tmp_path / "a.zarr", robot_arrays())
    file = declare(tmp_path / "layout.json", declared)
    with pytest.raises(ConfigError, match=expected):
        read_demonstrations(path, layout=file)


def test_a_damaged_layout_in_the_store_names_it(target: Path) -> None:
    path = write(target, arrays())
    if path.is_dir():
        declare(path / LAYOUT_FILE, {"actions": "action"})
    else:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(LAYOUT_FILE, json.dumps({"actions": "action"}))
    with pytest.raises(ConfigError, match=re.escape(f"{path}: {LAYOUT_FILE}: unknown field 'actions'")):
        read(path)


def test_a_layout_that_is_not_there_or_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.zarr", arrays())
    with pytest.raises(ConfigError, match=r"layout .*none\.json cannot be read \(No such file"):
        read_demonstrations(path, layout=tmp_path / "none.json")
    file = declare(tmp_path / "layout.json", {})
    with pytest.raises(ConfigError, match=r"'pusht-expert' \(the demonstrations that come with .* takes none"):
        read_demonstrations("pusht-expert", layout=file)

    class Plain:
        DESCRIPTION = "anything"

        def matches(self, _: Path) -> bool:
            return True

        def read(self, path: Path, *, episodes: int | None = None) -> None:
            """It takes no layout."""

    modules = {"diffusion-policy-zarr": reader("diffusion-policy-zarr"), "plain": Plain()}
    monkeypatch.setattr(classact.data.readers, "reader", lambda name: modules[name])
    monkeypatch.setattr(classact.data.readers, "READERS", dict.fromkeys(("plain", "diffusion-policy-zarr"), ""))
    with pytest.raises(ConfigError, match=r"a\.zarr \(plain\) takes none; formats that do: diffusion-policy-zarr\."):
        read_demonstrations(path, layout=file)


def test_action_spaces_in_layouts() -> None:
    space = ActionSpace.joints(3, "left", "right")
    assert Layout.from_json({"action_space": to_json(space)}).action_space == space
    parts = [{"name": "tip", "kind": "position"}, {"name": "hand", "kind": "gripper", "size": 2}]
    expected = ActionSpace((Part("tip", "position"), Part("hand", "gripper", 2)))
    assert Layout.from_json({"action_space": {"parts": parts}}).action_space == expected
    assert Layout.from_json({}) == Layout()


@pytest.mark.parametrize("D", [10, 20])
def test_ten_numbers_that_are_no_pose_are_not_taken_for_one(tmp_path: Path, D: int) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(STEPS, D)).astype(np.float32)
    demos = read(write(tmp_path / "a.zarr", arrays(action=numbers)), layout=PUSH_T)
    assert demos.schema.actions is None
    assert re.search(
        rf"no action space is assumed, although {D} dimensions can be poses: .*rotation", demos.schema.assumption
    )
    space = ActionSpace.pose() if D == 10 else ActionSpace.pose("left", "right")
    poses = space.orthogonalize(numbers.astype(np.float64))
    demos = read(write(tmp_path / "b.zarr", arrays(action=poses)), layout=PUSH_T)
    assert demos.schema.actions == space
    poses[3, 1] = np.nan
    assert "actions[3, 1] is nan" in message(write(tmp_path / "c.zarr", arrays(action=poses)), layout=PUSH_T)


def test_without_a_layout_push_t_is_assumed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", arrays())
    demos = read(path)
    assert demos.schema.proprioception == (("agent_pos", 2),)
    assert demos.schema.assumption.startswith("Push-T's layout; assumed from D = 2: action space 'point'")
    assert read(path, layout=PUSH_T).schema == demos.schema
    assert dict(read(write(tmp_path / "b.zarr", arrays(img=None))).images) == {}
    assert "data/img is missing" in message(tmp_path / "b.zarr", layout=PUSH_T)


@pytest.mark.parametrize(("key", "size"), [("action", 7), ("action", 3), ("state", 14), ("state", 2)])
def test_without_a_layout_another_robot_is_not_taken_for_push_t(target: Path, key: str, size: int) -> None:
    more = {"depth": np.ones((STEPS, 4, 4), np.float32), "robot_joint": np.ones((STEPS, 6))}
    path = write(target, arrays(**{key: np.ones((STEPS, size), np.float32), **more}))
    assert declared_simulator(path) == ""
    data = read(path)
    state = size if key == "state" else 5
    assert data.schema.proprioception == (("robot_joint", 6), ("state", state))
    assert data.states is None
    assert set(data.images) == {"img"}
    words = "proprioception is robot_joint, state, cameras are img; "
    assert data.schema.assumption.startswith(words)
    assert data.unread == ("depth", "keypoint")
    assert read(path, layout=Layout(proprioception={"all": "state"})).schema.keys == ("all",)


def test_push_t_is_declared_by_its_sizes_or_not_where_a_layout_says_otherwise(target: Path) -> None:
    path = write(target, arrays())
    assert declared_simulator(path) == "pusht"
    if path.is_dir():
        declare(path / LAYOUT_FILE, {"proprioception": {"all": "state"}})
        assert declared_simulator(path) == ""


def test_what_is_assumed_is_said_whenever_data_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.zarr", arrays())
    read_demonstrations(path)
    assert re.search(r"a \(.*a\.zarr\): not declared but assumed: Push-T's layout; .* 'point'", caplog.text)
    caplog.clear()
    layout = declare(tmp_path / "layout.json", {"proprioception": {"arm": "state"}})
    read_demonstrations(path, layout=layout)
    assert "not declared but assumed: assumed from D = 2" in caplog.text
    caplog.clear()
    declare(layout, {"proprioception": {"arm": "state"}, "action_space": "point"})
    read_demonstrations(path, layout=layout)
    read_demonstrations("pusht-expert", episodes=1)
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == ["not read: keypoint"]


def test_without_proprioception(tmp_path: Path) -> None:
    demos = read(write(tmp_path / "a.zarr", arrays()), layout=Layout())
    assert demos.proprioception.shape == (STEPS, 0)
    assert (demos.schema.keys, demos.states, list(demos.images)) == ((), None, ["img"])


# Some of them


def test_first_and_last_episodes_are_views(tmp_path: Path) -> None:
    demos = read(write(tmp_path / "a.zarr", robot_arrays()), layout=Layout.from_json(DECLARED))
    assert demos.language is not None
    for count in (1, 2, 3):
        last, copied = last_episodes(demos, count), demos.subset(range(3 - count, 3))
        assert_array_equal(last.episode_ends, copied.episode_ends)
        assert last.fingerprint() == copied.fingerprint()
        assert last.schema == demos.schema
        assert_array_equal(last.language, demos.language[3 - count :])
        for camera, images in last.images.items():
            assert_array_equal(images, copied.images[camera])
            assert_array_equal(images, demos.images[camera][STEPS - len(images) :])
        assert np.shares_memory(last.actions, demos.actions)
        first = first_episodes(demos, 3 - count) if count < 3 else None
        assert (0 if first is None else first.num_steps) + last.num_steps == STEPS
    for count in (0, 4):
        with pytest.raises(ConfigError, match=rf"asked for the last {count} episodes, but a .* has 3\. Ask for 1 to 3"):
            last_episodes(demos, count)


def test_states_of_the_last_episodes(tmp_path: Path) -> None:
    demos = read(write(tmp_path / "a.zarr", arrays()))
    assert demos.states is not None
    assert_array_equal(last_episodes(demos, 1).states, demos.states[ENDS[1] :])


# Damaged files


IMAGE = "data/img/1.0.0.0"
UNREADABLE = r"chunk file data/img/1\.0\.0\.0 cannot be decoded \(.*\): it is damaged"


def wrecked(raw: bytes) -> bytes:
    return raw[:16] + b"\xff" * (len(raw) - 16)


@pytest.mark.parametrize(
    ("compressor", "files", "change", "expected"),
    [
        (ZSTD, [IMAGE], lambda _: None, r"chunk file data/img/1\.0\.0\.0 is missing \(1 of 3 chunk files are\)"),
        (
            ZSTD,
            ["data/action/0.0", "data/action/2.0"],
            lambda _: None,
            r"chunk file data/action/0\.0 is missing \(2 of 3 .* read it as 0\.0",
        ),
        *(
            (
                ZSTD,
                [IMAGE],
                lambda raw, keep=keep: raw[:keep],
                r"chunk file data/img/1\.0\.0\.0 has [\d,]+ bytes, expected [\d,]+: it was truncated",
            )
            for keep in (0, 10, 16, 40, -10)
        ),
        (None, ["data/action/2.0"], lambda raw: raw[:-8], r"chunk file data/action/2\.0 has 48 bytes, expected 56"),
        (Zlib(), [IMAGE], lambda raw: raw[:-10], UNREADABLE),
        (ZSTD, [IMAGE], wrecked, UNREADABLE),
    ],
)
def test_damaged_chunks(
    target: Path, compressor: Any, files: list[str], change: Callable[[bytes], bytes | None], expected: str
) -> None:
    write(target, arrays(), compressor=compressor)
    for file in files:
        edit(target, file, change)
    assert re.search(expected, message(target))


def test_damaged_images_leave_no_entry_in_the_store(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", arrays())
    edit(path, "data/img/2.0.0.0", wrecked)
    store = ImageStore(tmp_path / "store")
    with pytest.raises(DataError, match=r"a\.zarr: data/img: chunk file data/img/2\.0\.0\.0 cannot be decoded"):
        store.get_or_create(resized(read(path).images["top"], 4))  # type: ignore[arg-type]
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_zip(tmp_path: Path, share: float) -> None:
    path = write(tmp_path / "a.zarr.zip", arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert re.search(r"\([\d,]+ bytes\) is not a complete zip file", message(path))


def test_corrupt_member_of_a_zip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr.zip", arrays())
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("data/img/1.0.0.0").header_offset
    content[start + 200 : start + 220] = bytes(20)
    path.write_bytes(content)
    assert re.search(r"data/img/1\.0\.0\.0 cannot be (read|decoded) \(.*Bad CRC-32", message(path))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"shape": [20, 2], "chunks": [0, 2], "dtype": "<f4"}'])
def test_damaged_metadata(target: Path, content: bytes) -> None:
    write(target, arrays())
    edit(target, "data/action/.zarray", lambda _: content)
    assert "data/action cannot be opened (" in (found := message(target))
    assert "Either data/action/.zarray is damaged" in found


def test_codec_that_is_not_installed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", arrays())
    edit(path, "data/img/.zarray", lambda raw: raw.replace(b'"blosc"', b'"imagecodecs_jpegxl"'))
    assert re.search(r"data/img is compressed with imagecodecs_jpegxl.*pip install imagecodecs", message(path))


# Data that do not fit together


def test_missing_arrays(target: Path) -> None:
    write(target, arrays(action=None, robot_command=np.zeros((STEPS, 2), np.float32)))
    assert re.search(
        r"data/action is missing; arrays in data: img, keypoint, robot_command, state\. Expected .* layout .*--propose",
        message(target),
    )


def test_missing_episode_ends(target: Path) -> None:
    write(target, arrays(episode_ends=None))
    assert "meta/episode_ends is missing" in message(target)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([8, 5, 20], "episode_ends must increase, but episode 1 ends before it starts: it runs from step 8 to 5"),
        ([-3, 5, 20], "episode 0 ends before it starts: it runs from step 0 to -3"),
        ([8, 8, 20], "episode 1 has 0 steps: it runs from step 8 to 8"),
        ([0, 8, 20], "episode 0 has 0 steps: it runs from step 0 to 0"),
        ([8, 13, 25], "episode_ends ends at 25 but there are 20 steps of actions"),
        ([8, 13, 19], "episode_ends ends at 19 but there are 20 steps of actions"),
    ],
)
def test_wrong_episode_ends(target: Path, ends: list[int], expected: str) -> None:
    write(target, arrays(episode_ends=np.array(ends, np.int64)))
    assert expected in message(target)


def test_episode_ends_of_another_type(tmp_path: Path) -> None:
    content = arrays()
    path = write(tmp_path / "a.zarr", {**content, "episode_ends": content["episode_ends"].astype(np.int32)})
    assert read(path).episode_ends.dtype == np.int64
    path = write(tmp_path / "b.zarr", {**content, "episode_ends": content["episode_ends"].astype(np.float64)})
    assert "meta/episode_ends has shape (3,) and dtype float64, expected (E,) integers" in message(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite(target: Path, value: float) -> None:
    content = arrays()
    content["action"][[9, 12], 1] = value
    found = message(write(target, content))
    assert f"actions[9, 1] is {value}; 2 of 20 steps hold NaN or infinite values. Drop or repair" in found


def test_actions_beyond_float32(tmp_path: Path) -> None:
    content = arrays(action=arrays()["action"].astype(np.float64))
    content["action"][3, 0] = 1e300
    assert "actions[3, 0] is inf" in message(write(tmp_path / "a.zarr", content))


@pytest.mark.parametrize(
    ("key", "array", "expected"),
    [
        ("action", np.ones(STEPS, np.float32), "data/action has shape (20,) and dtype float32, expected (N, D)"),
        ("action", np.ones((STEPS, 2), bool), "data/action has shape (20, 2) and dtype bool, expected (N, D) numbers"),
        ("state", np.ones((STEPS - 1, 5), np.float32), "data/state has shape (19, 5), but data/action has shape"),
        ("img", np.ones((STEPS - 1, 6, 8, 3), "f4"), "data/img has shape (19, 6, 8, 3), but data/action has shape"),
        ("img", np.ones((STEPS, 4, 6, 8), "f4"), "data/img has shape (20, 4, 6, 8), expected images of shape (N, H"),
        ("img", np.ones((STEPS, 6, 8), "f4"), "data/img has shape (20, 6, 8), expected images of shape (N, H, W, 3)"),
        ("img", np.ones((STEPS, 6, 8, 3), bool), "data/img has dtype bool, expected images of numbers from 0 to 255"),
    ],
)
def test_arrays_of_other_shape_or_type(target: Path, key: str, array: np.ndarray, expected: str) -> None:
    assert expected in message(write(target, arrays(**{key: array})))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.nan, "data/img[9, 2, 3, 1] is nan, which is not in 0..255"),
        (np.inf, "data/img[9, 2, 3, 1] is inf, which is not in 0..255"),
        (-1, "data/img[9, 2, 3, 1] is -1.0, which is not in 0..255"),
        (256, "data/img[9, 2, 3, 1] is 256.0, which is not in 0..255"),
        (12.5, "data/img[9, 2, 3, 1] is 12.5, which is not a whole number. Expected"),
    ],
)
def test_image_values(target: Path, value: float, expected: str) -> None:
    content = arrays()
    content["img"][9, 2, 3, 1] = value
    found = message(write(target, content))
    assert expected in found
    assert re.search(r"; 1 of [\d,]+ values around it are not", found)


def test_images_scaled_to_one(tmp_path: Path) -> None:
    content = arrays(img=arrays()["img"] / 255)
    found = message(write(tmp_path / "a.zarr", content))
    assert "is not a whole number. These look like images scaled to [0, 1]: multiply by 255" in found
    masks = (arrays()["img"] > 128).astype(np.float32)
    found = message(write(tmp_path / "b.zarr", arrays(img=masks)))
    assert "data/img: the largest value is 1.0; expected values from 0 to 255" in found


# Paths


def test_unknown_path(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_demonstrations(tmp_path / "nothing.zarr")
    assert f"{tmp_path / 'nothing.zarr'} does not exist" in str(caught.value)
    for name in (*READERS, "'pusht-expert'"):
        assert name in str(caught.value)


def test_wrong_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"is in no known format: it is a folder that holds notes\.txt\. Formats"):
        read_demonstrations(str(tmp_path))
    with pytest.raises(DataError, match=r"notes\.txt is in no known format: it is a file\. Formats"):
        read_demonstrations(tmp_path / "notes.txt")


def test_parent_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", arrays())
    with pytest.raises(DataError, match=re.escape(f"did you mean {path}")):
        read_demonstrations(tmp_path)


def test_zarr_group_that_is_something_else(tmp_path: Path) -> None:
    zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2).create_group("other")
    assert "data/action is missing; arrays in data: none" in message(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    "options",
    [
        {"compressor": "auto"},
        {"compressor": None},
        {"compressor": zarr.codecs.BloscCodec()},
        {"compressor": zarr.codecs.ZstdCodec(checksum=True), "shards": 3},
    ],
)
def test_zarr_version_3(target: Path, options: dict[str, Any]) -> None:
    path, content = write(target, arrays(), version=3, **options), arrays()
    data = read(path)
    assert_array_equal(data.actions, content["action"])
    assert_array_equal(np.asarray(data.images["top"]), content["img"].astype(np.uint8))
    assert declared_simulator(path) == "pusht"
    if path.is_dir():
        files = [file for file in sorted((path / "data/action").rglob("*")) if file.is_file() and file.name.isdigit()]
        files[0].write_bytes(files[0].read_bytes()[:-3])
        assert "data/action" in message(path)
        files[0].unlink()
        assert "is missing" in message(path)


def test_version_3_leaves_out_constant_chunks_which_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    action = np.ones((STEPS, 2), np.float32)
    action[1] = 0
    path = write(tmp_path / "a.zarr", arrays(action=action), version=3, rows=1, compressor="auto")
    assert_array_equal(read(path).actions, action)
    assert f"data/action: 1 of {STEPS} chunk files are not there, so all their values are 0" in caplog.text


def test_registry() -> None:
    for name in READERS:
        module = reader(name)
        assert module.DESCRIPTION
        assert takes_layout(module) is (name != "classact")
        assert not module.matches(Path(classact.data.readers.__file__))


# Real data


def test_human_demonstrations(human_zarr: Path) -> None:
    demos = read_demonstrations(human_zarr)
    assert (len(demos), demos.num_steps) == (206, 25_650)
    images = demos.images["top"]
    assert images.shape == (25_650, 96, 96, 3)
    raw = zarr.open_group(str(human_zarr), mode="r", zarr_format=2)
    for row in (0, 1, 160, 161, 12_345, 25_599, 25_649):
        assert_array_equal(images[row], np.asarray(raw["data/img"][row]))
    assert_array_equal(demos.actions, np.asarray(raw["data/action"]))
    assert_array_equal(demos.states, np.asarray(raw["data/state"]))
    assert_array_equal(demos.proprioception, np.asarray(raw["data/state"])[:, :2])
    assert_array_equal(demos[205].images["top"], images[demos.bounds(205)[0] :])
