"""Stages: what is due, what is left, and what is made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fakes
from classact.errors import CheckpointError
from classact.objectives import OBJECTIVES, objective_config
from classact.run import pretrain
from classact.run.config import HeadRunConfig, RunConfig
from classact.run.finetune import FINETUNING, HeadPipeline
from classact.run.folder import Run
from classact.run.presets import HEAD_PRESETS, from_preset, with_objective
from classact.run.pretrain import Pipeline, pictures, pretraining, rollouts
from classact.run.stages import Stage, due


def stage(leaves: str, *needs: str) -> Stage:
    return Stage(leaves, needs, leaves, lambda _: leaves)


CHAIN = (stage("a"), stage("b", "a"), stage("c", "a"), stage("d", "b", "c"), stage("e", "a"))


@pytest.mark.parametrize(
    ("wanted", "there", "expected"),
    [
        (["d"], "", "abcd"),
        (["e"], "", "ae"),
        (["d"], "bc", "d"),
        (["d"], "c", "abd"),
        (["d"], "abcd", ""),
        (["d", "e"], "bc", "ade"),
    ],
)
def test_only_what_is_missing_and_needed_is_due(wanted: list[str], there: str, expected: str) -> None:
    assert "".join(found.name for found in due(CHAIN, wanted, lambda name: name in there)) == expected


def all_stages() -> list[tuple[Stage, ...]]:
    config = from_preset("debug")
    objectives = [
        replace(config, pretrain=with_objective(config.pretrain, objective_config(name))) for name in OBJECTIVES
    ]
    return [FINETUNING, *((*pretraining(c), *rollouts(c), *pictures(c)) for c in objectives)]


def test_what_a_stage_needs_an_earlier_one_leaves() -> None:
    for stages in all_stages():
        left: set[str] = set()
        for one in stages:
            assert set(one.needs) <= left, one.name
            assert one.leaves not in left, one.name
            assert (one.kept is None) == (one.load is None), one.name
            left.add(one.leaves)


# A run, stage by stage


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fakes.write_zarr(tmp_path_factory.mktemp("data") / "tiny.zarr", fakes.demonstrations(0, 96, fakes.LENGTHS))


@pytest.fixture(scope="module")
def config(data: Path) -> RunConfig:
    made = from_preset("debug", data=str(data), baselines=False)
    small = replace(made.pretrain, similarity=replace(made.pretrain.similarity, pairs=5000))
    return replace(made, pretrain=small, evaluation=replace(made.evaluation, episodes=2, workers=1))


def monitored(work: Any, seen: list[str]) -> Any:
    """Every stage that is done is noted by what it leaves."""

    def noting(one: Stage) -> Callable[[Any], Any]:
        def do(work: Any) -> Any:
            seen.append(one.leaves)
            return one.do(work)

        return do

    work.stages = tuple(replace(one, do=noting(one)) for one in work.stages)
    return work


WHOLE = ["demonstrations", "checked", "frames", "training", "encoder", "policy"]


def test_what_is_deleted_is_made_again_and_nothing_else(config: RunConfig, tmp_path: Path) -> None:
    run, seen = Run(tmp_path), []  # type: tuple[Run, list[str]]

    def pretrained() -> list[str]:
        seen.clear()
        monitored(Pipeline(run, config, quiet=True), seen).pretrain()
        return list(seen)

    assert pretrained() == WHOLE
    before = (run.policy / "bank.safetensors").read_bytes()
    assert pretrained() == []
    shutil.rmtree(run.policy)
    assert pretrained() == ["demonstrations", "frames", "policy"]
    assert (run.policy / "bank.safetensors").read_bytes() == before
    shutil.rmtree(run.encoder)
    assert pretrained() == []  # the policy has its own
    shutil.rmtree(run.policy)
    assert pretrained() == WHOLE
    assert (run.policy / "bank.safetensors").read_bytes() == before

    # Heads likewise.
    made = HEAD_PRESETS["head-debug"].config("mlp")
    head = HeadRunConfig(replace(made, evaluations=0, batch_size=16, precision="float32"))

    def tuned() -> list[str]:
        seen.clear()
        monitored(HeadPipeline(run, head, quiet=True, device="cpu"), seen).train()
        return list(seen)

    shutil.rmtree(run.policy)
    assert tuned() == ["demonstrations", "frames", "policy"]
    assert tuned() == []
    shutil.rmtree(run.head("mlp") / "policy")
    assert tuned() == ["demonstrations", "frames", "policy"]


@pytest.fixture(scope="module")
def whole_bank(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = Run(tmp_path_factory.mktemp("whole"))
    Pipeline(run, config, quiet=True).pretrain()
    return (run.policy / "bank.safetensors").read_bytes()


@pytest.mark.parametrize("broken", ["prepare_training", "retrieval", "load_encoder"])
def test_a_stage_that_is_interrupted_goes_on(
    config: RunConfig, whole_bank: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    run = Run(tmp_path)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, broken, stop)
        with pytest.raises(KeyboardInterrupt):
            Pipeline(run, config, quiet=True).pretrain()
    assert not run.policy.exists()
    Pipeline(run, config, quiet=True).pretrain()
    assert (run.policy / "bank.safetensors").read_bytes() == whole_bank


def test_what_has_not_been_made_is_said(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no policy yet"):
        _ = Pipeline(Run(tmp_path), config, quiet=True).policy
