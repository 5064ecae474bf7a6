from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import fakes
from classact.errors import CheckpointError, ConfigError
from classact.policies import RetrievalConfig, RetrievalPolicy, StateLatents, load_policy
from classact.policies.folder import METADATA


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    data = fakes.demonstrations()
    RetrievalPolicy.build(StateLatents(256, 256, (4,)), data, RetrievalConfig(k=5)).save(tmp_path / "p")
    return tmp_path / "p"


def test_the_metadata_say_which_policy_it_is(saved: Path) -> None:
    policy = load_policy(saved, k=3)
    assert isinstance(policy, RetrievalPolicy)
    assert policy.config == RetrievalConfig(k=3)
    usual = RetrievalPolicy.load(saved).spec
    assert policy.spec == replace(usual, acting={**usual.acting, "k": 3})
    assert_array_equal(policy.bank, RetrievalPolicy.load(saved).bank)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "ddim"}, "unknown retrieval setting 'scheduler': available are 'chunk_length', 'horizon', 'k'"),
        ({"k": 0}, "expected k >= 1"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
    ],
)
def test_bad_options(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_policy(saved, **options)


def test_folders_of_something_else(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none is no policy: it does not exist. Expected a folder"):
        load_policy(tmp_path / "none")
    with pytest.raises(CheckpointError, match=rf"is no policy: it has no {METADATA}"):
        load_policy(tmp_path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(CheckpointError, match=r"array.npy is no policy: it has no"):
        load_policy(tmp_path / "array.npy")
    for content, found in (('{"format": "x-1"}', "x-1"), ("[]", r"\[\]")):
        (saved / METADATA).write_text(content)
        with pytest.raises(
            CheckpointError,
            match=rf"unknown format '{found}': available are 'classact-monitored-1', 'classact-parametric-3'",
        ):
            load_policy(saved)
