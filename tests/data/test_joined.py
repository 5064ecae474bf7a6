"""Several data sets as one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

import classact
from classact.data.images import ArrayImages, ImageStore, JoinedImages, resize_images
from classact.data.joined import join, shares
from classact.data.lerobot_writer import write_lerobot
from classact.data.readers import read_demonstrations
from classact.data.schema import Schema
from classact.data.types import Demonstrations
from classact.errors import ClassactError, ConfigError, DataError
from classact.run.config import FramesConfig
from classact.run.frames import prepare_frames
from classact.sims import NO_SIMULATOR
from classact.train.loader import make_loader


def one(name: str, lengths: tuple[int, ...] = (4, 6, 5), side: int = 12, **changes: Any) -> Demonstrations:
    rng = np.random.default_rng(sum(map(ord, name)))
    steps = sum(lengths)
    data = Demonstrations(
        name,
        np.cumsum(lengths),
        rng.normal(size=(steps, 2)).astype(np.float32),
        rng.normal(size=(steps, 3)).astype(np.float32),
        images={camera: rng.integers(0, 255, (steps, side, side, 3), np.uint8) for camera in ("top", "wrist")},
        source=f"/data/{name}",
        schema=Schema(("top", "wrist"), (("joints", 2), ("grip", 1)), fps=10.0),
    )
    return replace(data, **changes)


def with_schema(data: Demonstrations, **changes: Any) -> Demonstrations:
    return replace(data, schema=replace(data.schema, **changes))


def test_episodes_follow_one_another_and_the_held_out_ones_come_last() -> None:
    a, b = one("a", (4, 6, 5, 3)), one("b", (2, 7))
    made = join([a, b], weights=(1, 0.5), heldout=2)
    # Of three and one episodes, for one of each stays, two are 1.5 and 0.5: the first remainder is rounded up.
    assert made.lengths.tolist() == [4, 6, 2, 7, 5, 3]
    assert made.origin is not None
    assert made.origin.tolist() == [0, 0, 1, 1, 0, 0]
    assert [(o.name, o.episodes, o.steps, o.weight) for o in made.origins] == [("a", 4, 18, 1.0), ("b", 2, 9, 0.5)]
    assert [o.fingerprint for o in made.origins] == [a.fingerprint(), b.fingerprint()]
    plain = join([a, b])
    assert_array_equal(plain.actions, np.concatenate([a.actions, b.actions]))
    assert_array_equal(np.asarray(plain.images["top"]), np.concatenate([a.images["top"], b.images["top"]]))
    assert plain.weights() is None
    weights = join([a, b], weights=(1, 0.5)).weights()
    assert weights is not None
    assert weights.tolist() == [1.0] * 18 + [0.5] * 9
    kept = made.subset([5, 0]).weights()
    assert kept is not None
    assert set(kept) <= {1.0, 0.5}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.data())
@settings(max_examples=30)
def test_episodes_are_held_out_in_proportion(counts: list[int], draw: st.DataObject) -> None:
    heldout = draw.draw(st.integers(0, sum(counts) - len(counts)))
    sets = [one(f"s{i}", (2,) * n, side=2) for i, n in enumerate(counts)]
    made = join(sets, heldout=heldout)
    assert made.origin is not None
    train = made.origin[: len(made) - heldout]
    held = np.bincount(made.origin[len(made) - heldout :], minlength=len(counts))
    assert set(train.tolist()) == set(range(len(counts)))
    rest = np.array(counts) - 1
    assert (np.abs(held - heldout * rest / max(rest.sum(), 1)) < 1).all()
    # Every episode is there once, with its own actions, proprioception and images.
    rows = np.concatenate([data.actions[:, 0] for data in sets])
    assert_array_equal(np.sort(made.actions[:, 0]), np.sort(rows))
    whole = {camera: np.concatenate([data.images[camera] for data in sets]) for camera in ("top", "wrist")}
    where = np.array([int(np.flatnonzero(rows == value)[0]) for value in made.actions[:, 0]])
    for camera, images in whole.items():
        assert_array_equal(np.asarray(made.images[camera]), images[where])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            replace(one("b"), actions=np.zeros((15, 3), np.float32)),
            r"a \(/data/a\) and b .*: actions are .*2 dim.*3 dim",
        ),
        (with_schema(one("b"), fps=25.0), r"one has 10 steps per second, the other 25.*--fps 5\."),
        (with_schema(one("b"), proprioception=(("joints", 2), ("hand", 1))), r"--keys joints\)"),
        (one("b").with_images({"top": one("b").images["top"]}), r"camera 'wrist' is in the one.*--cameras top\."),
        (
            one("b").with_images({"top": one("b").images["top"], "wrist": np.zeros((15, 12, 16, 3), np.uint8)}),
            r"camera 'wrist' has images of different proportions, 12 x 12, 16 x 12 pixels.*--cameras",
        ),
        (replace(one("b"), images_shift="rand-color"), r"images show the plain appearance in one, rand-color"),
    ],
)
def test_what_does_not_agree_is_named_with_what_to_choose(other: Demonstrations, message: str) -> None:
    with pytest.raises(DataError, match=message):
        join([one("a"), other])


def test_what_is_chosen_is_all_that_must_agree() -> None:
    other = with_schema(one("b"), proprioception=(("joints", 2), ("hand", 1)))
    other = other.with_images({"top": other.images["top"]})
    made = join([one("a"), other], cameras=("top",), keys=("joints",))
    assert tuple(made.images) == ("top",)
    assert made.schema.proprioception == (("joints", 2),)
    with pytest.raises(ConfigError, match=r"3 weights were given for 2 data sets"):
        join([one("a"), other], weights=(1, 1, 1))
    with pytest.raises(ConfigError, match=r"above 0, got 0\."):
        join([one("a"), one("b")], weights=(1, 0))
    with pytest.raises(ConfigError, match=r"of 2 data sets hold out at most 4"):
        join([one("a"), one("b")], heldout=5)


def test_some_carry_actions_and_some_do_not() -> None:
    made = join([one("a"), one("b").only_labelled([1])], heldout=2)
    assert made.labelled is not None
    assert made.labelled.tolist() == [True, True, False, True, True, False]  # the last of each set are held out
    assert join([one("a"), one("b")]).labelled is None


def test_several_tasks_are_told_apart() -> None:
    a = replace(one("a"), instructions=("push",) * 3)
    b = replace(one("b"), instructions=("pull",) * 3)
    made = join([a, b])
    assert made.language is not None
    assert len(np.unique(made.language, axis=0)) == 2
    assert made.schema.language == made.language.shape[1]
    assert join([a, replace(b, instructions=("push",) * 3)]).language is None


def test_frames_are_prepared_for_each_set_and_shared_by_runs(tmp_path: Path) -> None:
    store, config = ImageStore(tmp_path), FramesConfig(simulator=NO_SIMULATOR)
    a, b = one("a"), one("b", side=16)
    prepare_frames(a, ("top",), 8, config, store=store)
    said: list[str] = []
    made = prepare_frames(join([a, b], heldout=2), ("top",), 8, config, store=store, say=said.append)
    assert len(said) == 1
    assert "images to prepare: 1 x (15 x 8 x 8 x 3)" in said[0]  # those of the first are there
    assert len(list(tmp_path.iterdir())) == 2
    images = made.images["top"]
    assert isinstance(images, JoinedImages)
    assert images.is_decoded
    order = np.concatenate([np.arange(10), 15 + np.arange(10), np.arange(10, 15), 15 + np.arange(10, 15)])
    true = np.concatenate([resize_images(np.asarray(d.images["top"]), 8) for d in (a, b)])[order]
    loader = make_loader(made.images, "cpu")
    rows = np.random.default_rng(0).integers(0, 30, 50)
    assert_array_equal(loader.take(rows)["top"].numpy(), true[rows])
    assert_array_equal(np.asarray(images[3:29][5:20]), true[8:23])
    assert_array_equal(np.asarray(images[rows]), true[rows])
    assert images[3:29].digest() != images.digest()
    with pytest.raises(DataError, match=r"12 x 12 .* prepare them at one size|16 x 16 and 12 x 12"):
        np.asarray(JoinedImages([ArrayImages(a.images["top"]), b.images["top"]], [(0, 0, 2), (1, 0, 2)]))


def test_python_and_the_command_line_read_the_same(tmp_path: Path) -> None:
    paths = [write_lerobot(one(name), tmp_path / name, images="png") for name in ("a", "b")]
    data = classact.read(paths, weights=[1, 2], episodes=2)
    made = classact.configure(data, preset="debug")
    assert made == classact.configure(paths, preset="debug", data_weights=(1.0, 2.0), episodes=2, fps=10.0)
    assert (made.sources, made.data_weights, made.episodes) == (tuple(map(str, paths)), (1.0, 2.0), 2)
    assert made.pretrain.encoder.cameras == ("top", "wrist")
    assert read_demonstrations([paths[0]]).fingerprint() == read_demonstrations(paths[0]).fingerprint()
    with pytest.raises(ClassactError, match="empty list of data sets"):
        classact.read([])


def test_shares_are_whole_and_add_up() -> None:
    assert shares(np.array([1.0, 1.0, 1.0]), 10).sum() == 10
    assert shares(np.array([3.0, 1.0]), 4).tolist() == [3, 1]


def test_views_that_only_one_has_recorded_are_rendered_where_both_have_states() -> None:
    a, b = (replace(one(n), states=np.zeros((15, 5)), simulator="pusht") for n in ("a", "b"))
    b = replace(b.with_images({}), versions={"pymunk": "6.11.1"})
    made = join([a, b], cameras=("top",))
    assert dict(made.images) == {}
    assert made.states is not None
    assert (made.simulator, made.versions) == ("pusht", {"pymunk": "6.11.1"})
    other = replace(a, versions={"pymunk": "5.0"})
    with pytest.raises(DataError, match=r"camera 'top' is in the one"):
        join([other, b], cameras=("top",))
