"""Data that hold no actions are demonstrations without actions, in every format; what needs actions refuses them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from hdf5_files import demo, env_args, write_robomimic
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lerobot_files import episode, write_v3
from numpy.testing import assert_array_equal
from test_inputs import FORMATS
from test_inputs import folder as folder

from classact.cli.main import main
from classact.data.joined import join
from classact.data.layout import Layout
from classact.data.lerobot_writer import write_lerobot
from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations
from classact.errors import ConfigError, DataError
from classact.similarity import ActionSimilarity, SimilarityConfig

ACTION = re.compile(r"actions?(/.*)?")


def strip(path: Path, name: Callable[[str], str | None] = lambda _: None) -> None:
    """Take the actions out of files of any format, or give them another name."""
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix == ".hdf5":
            with h5py.File(file, "a") as content:
                found: list[str] = []
                content.visit(found.append)
                for key in found:
                    if ACTION.fullmatch(key.rpartition("/")[2]):
                        if (new := name(key)) is not None:
                            content[f"{key.rpartition('/')[0]}/{new}"] = content[key][()]
                        del content[key]
        elif file.name == "action" and file.is_dir():
            new = name("action")
            file.rename(file.parent / (new or ".gone"))
        elif file.name == "info.json":
            info = json.loads(file.read_text())
            kept = info["features"].pop("action")
            if (new := name("action")) is not None:
                info["features"][new] = kept
            file.write_text(json.dumps(info))
        elif file.suffix == ".parquet" and file.parent.parent.name == "data":
            table = pq.read_table(file)
            new = name("action")
            names = [new if one == "action" and new else one for one in table.column_names]
            pq.write_table(table.rename_columns(names) if new else table.drop_columns(["action"]), file)
        elif file.suffix == ".npz":
            with np.load(file) as content:
                arrays = {key: content[key] for key in content if key != "actions"}
            np.savez(file, **arrays)


KINDS = ["zarr", "aloha", "libero", "robomimic", "real-pusht", "hdf5", "lerobot", "npz"]


@pytest.mark.parametrize("kind", KINDS)
def test_all_else_is_read_as_it_was(folder: Path, kind: str) -> None:
    path = FORMATS[kind][0](folder)
    if kind == "zarr":  # as all of Diffusion Policy's Push-T has
        zarr.open_group(str(path), mode="a").create_array("data/keypoint", data=np.ones((7, 9, 2), np.float32))
    whole = read_demonstrations(path)
    strip(path)
    bare = read_demonstrations(path)
    assert bare.actions.shape == (whole.num_steps, 0)
    assert not bare.carries_actions().any()
    assert bare.schema.actions is None
    assert "carry none" in bare.schema.assumption
    assert (bare.schema.proprioception, bare.schema.cameras, bare.schema.fps) == (
        *(whole.schema.proprioception, whole.schema.cameras),
        whole.schema.fps,
    )
    for name in ("episode_ends", "proprioception", "states", "language"):
        mine, theirs = getattr(bare, name), getattr(whole, name)
        assert (mine is None) == (theirs is None)
        if mine is not None:
            assert_array_equal(mine, theirs)
    for camera, images in whole.images.items():
        assert_array_equal(np.asarray(bare.images[camera]), np.asarray(images))
    with pytest.raises(ConfigError, match=rf"{len(bare)} of {len(bare)} demonstrations carry no .*classact latent-act"):
        bare.require_actions()
    both = join([bare, whole])
    assert_array_equal(both.carries_actions(), np.repeat([False, True], len(bare)))
    assert_array_equal(both.labelled_actions(), whole.actions)
    assert both.schema.actions == whole.schema.actions


@pytest.mark.parametrize("kind", ["zarr", "robomimic", "hdf5", "lerobot"])
def test_actions_of_another_name_are_not_passed_over(folder: Path, kind: str) -> None:
    path = FORMATS[kind][0](folder)
    strip(path, lambda _: "raw_actions")
    with pytest.raises(DataError, match="action"):
        read_demonstrations(path)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, 3), max_size=4))
def test_some_demonstrations_of_a_file_may_lack_them(tmp_path: Path, gone: set[int]) -> None:
    demos = {f"demo_{i}": demo(3 + i, i) for i in range(4)}
    whole = read_demonstrations(write_robomimic(tmp_path / "a.hdf5", demos, attributes=env_args()))
    path = write_robomimic(tmp_path / "b.hdf5", demos, attributes=env_args())
    with h5py.File(path, "a") as file:
        for i in gone:
            del file[f"data/demo_{i}/actions"]
    data = read_demonstrations(path)
    assert_array_equal(data.proprioception, whole.proprioception)
    assert_array_equal(np.flatnonzero(~data.carries_actions()), sorted(gone))
    left = [i for i in range(4) if i not in gone]
    if left:
        assert_array_equal(data.labelled_actions(), whole.subset(left).actions)
    if gone:
        with pytest.raises(ConfigError, match=f"{len(gone)} of 4 demonstrations carry no actions"):
            ActionSimilarity(data, SimilarityConfig(horizon=2))


def test_neither_actions_nor_anything_observed_is_no_data(tmp_path: Path) -> None:
    path = write_v3(tmp_path / "set", [episode(4, cameras={})])
    strip(path)
    info = json.loads((path / "meta/info.json").read_text())
    del info["features"]["observation.state"]
    (path / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="there is no feature 'action'"):
        read_demonstrations(path)
    with pytest.raises(DataError, match="neither actions nor numbers or images that are observed"):
        read_demonstrations(path, layout=Layout(action=()))  # type: ignore[arg-type]


def test_which_episodes_carry_actions_survives_conversion(tmp_path: Path) -> None:
    data = read_demonstrations(write_v3(tmp_path / "set", [episode(4 + i, i, cameras={}) for i in range(5)]))
    some = data.only_labelled([1, 2, 4])
    back = read_demonstrations(write_lerobot(some, tmp_path / "some"))
    assert_array_equal(back.carries_actions(), some.carries_actions())
    assert_array_equal(back.actions, some.actions)
    assert read_demonstrations(tmp_path / "some", episodes="2:5").carries_actions().tolist() == [True, False, True]
    none = read_demonstrations(write_lerobot(data.only_labelled([]), tmp_path / "none"))
    assert not none.carries_actions().any()
    bare = Demonstrations(
        "bare", data.episode_ends, data.actions[:, :0], data.proprioception, schema=replace(none.schema, actions=None)
    )
    again = read_demonstrations(write_lerobot(bare, tmp_path / "bare", fps=10))
    assert again.actions.shape[1] == 0


def test_what_is_said_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arm = write_v3(tmp_path / "arm", [episode(4 + i, i, cameras={}) for i in range(3)])
    seen = write_v3(tmp_path / "seen", [episode(4, i + 5, cameras={}) for i in range(2)])
    strip(seen)
    assert main(["data", "info", str(seen)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"actions\W+none", out)
    assert "carry none" in out
    assert main(["data", "validate", str(seen), "--quiet"]) == 0
    assert "2 of 2 carry no actions" in capsys.readouterr().out
    out_folder = tmp_path / "out"
    assert main(["similarity", str(arm), str(seen), "--out", str(out_folder), "--horizon", "2", "--quiet"]) == 1
    assert "2 of 5 demonstrations carry no actions" in capsys.readouterr().err
    latent = ["latent-actions", "--preset", "clam-debug", "--quiet", "--out"]
    assert main([*latent, str(out_folder), "--data", str(seen)]) == 1
    assert "none of 2 demonstrations carries actions" in capsys.readouterr().err
    assert main([*latent, str(out_folder), "--data", str(seen), str(arm)]) == 0
    assert "3 of 5 demonstrations" in capsys.readouterr().out
    other = write_v3(tmp_path / "other", [episode(4, actions=3, cameras={})])
    assert main([*latent, str(tmp_path / "no"), "--data", str(arm), str(other)]) == 1
    assert re.search("2 dimensions in one, .*3 dimensions in the other", capsys.readouterr().err)
