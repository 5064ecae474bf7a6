"""Exported policies in LeRobot's own code: .ci/lerobot runs this in an environment that has both."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

pytest.importorskip("lerobot", reason="needs LeRobot in an environment of its own: .ci/lerobot")
pytest.importorskip("lerobot_policy_classact", reason="needs plugins/lerobot_policy_classact: .ci/lerobot")

from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from classact.cli.main import main
from classact.data.types import Observation
from classact.errors import CheckpointError, ConfigError
from classact.policies import ControlConfig, Runner
from classact.policies.base import decide
from classact.run.export import export_lerobot
from classact.run.folder import Run
from classact.run.load import load_policy
from classact.utils.storage import write_json

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Push-T with retrieval and a head, hardly trained."""
    out = tmp_path_factory.mktemp("run") / "demo"
    command = ["demo", "--out", str(out), "--preset", "debug", "--episodes", "12", "--workers", "1", "--quiet"]
    assert main([*command, "--head", "mlp", "--test-episodes", "1"]) == 0
    return Run(out)


def head_of(run: Run) -> str:
    return next(run.heads.iterdir()).name


def loaded(folder: Path) -> Any:
    config = PreTrainedConfig.from_pretrained(folder)
    return get_policy_class(config.type).from_pretrained(folder, config=config)


def seen(policy: Any, count: int) -> list[Observation]:
    rng = np.random.default_rng(0)
    size = policy.spec.schema.proprioception_dim
    return [
        Observation({"top": rng.integers(0, 256, (96, 96, 3), np.uint8)}, rng.uniform(0, 512, size).astype(np.float32))
        for _ in range(count)
    ]


def batch_of(observations: list[Observation]) -> dict[str, Any]:
    """As LeRobot's environments and robots give them."""
    images = np.stack([one.images["top"] for one in observations])
    return {
        "observation.image": torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255,
        "observation.state": torch.from_numpy(np.stack([one.proprioception for one in observations])),
    }


@pytest.mark.parametrize("of_head", [False, True])
def test_the_same_chunks_from_a_hundred_observations(run: Run, of_head: bool, tmp_path: Path) -> None:
    head = head_of(run) if of_head else None
    theirs = loaded(export_lerobot(run, tmp_path / "out", head=head))
    ours: Any = load_policy(run if head is None else run.head(head))
    observations = seen(ours, 100)
    assert_array_equal(theirs.predict_action_chunk(batch_of(observations)).numpy(), decide(ours, observations).chunk)


def test_action_by_action_it_acts_as_a_runner_does(run: Run, tmp_path: Path) -> None:
    theirs, ours = loaded(export_lerobot(run, tmp_path / "out")), load_policy(run.policy)
    pre, post = make_pre_post_processors(theirs.config, pretrained_path=str(tmp_path / "out"))
    runner = Runner(ours)
    observations = seen(ours, 20)
    for _ in range(2):
        theirs.reset()
        runner.reset()
        for one in observations:
            batch = {name: value[0] for name, value in batch_of([one]).items()}
            action = post(theirs.select_action(pre(batch)))
            assert_allclose(action.numpy()[0], runner.step(one), rtol=1e-6)


def evaluated(run: Run, tmp_path: Path, **changes: Any) -> Run:
    """The same run, evaluated otherwise."""
    out = Run(Path(shutil.copytree(run.root, tmp_path / "run")))
    config = out.read_config()
    config["settings"]["evaluation"] |= changes
    write_json(out.config, config)
    return out


def test_it_executes_as_much_of_a_chunk_as_its_run_or_as_lerobot_says(run: Run, tmp_path: Path) -> None:
    out = export_lerobot(evaluated(run, tmp_path, execute=2, ensemble=0.1), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["n_action_steps"] == 2
    ours = load_policy(run.policy)
    observations = seen(ours, 20)
    for asked in (2, 3):
        config = PreTrainedConfig.from_pretrained(out, cli_overrides=[f"--n_action_steps={asked}"])
        theirs = get_policy_class(config.type).from_pretrained(out, config=config)
        runner = Runner(ours, ControlConfig(asked, 0.1))
        for one in observations:
            assert_allclose(theirs.select_action(batch_of([one])).numpy()[0], runner.step(one), rtol=1e-6)
    config = PreTrainedConfig.from_pretrained(out, cli_overrides=["--n_action_steps=99", "--speed=0.5"])
    theirs = get_policy_class(config.type).from_pretrained(out, config=config)
    with pytest.raises(ConfigError, match=r"--policy\.n_action_steps 99: execute 99 asked of policy 'retrieval'"):
        theirs.select_action(batch_of(observations[:1]))
    slow = load_policy(run.policy, speed=0.5)
    chunk = theirs.predict_action_chunk(batch_of(observations[:1])).numpy()
    assert_array_equal(chunk, decide(slow, observations[:1]).chunk)
    config = PreTrainedConfig.from_pretrained(out, cli_overrides=["--horizon=8"])
    with pytest.raises(ConfigError, match=r"--policy\.horizon 8: a policy that classact exported is trained already"):
        get_policy_class(config.type).from_pretrained(out, config=config)


def test_a_damaged_or_missing_weight_is_an_error(run: Run, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    out = export_lerobot(run, tmp_path / "out")
    arrays = load_file(out / "model.safetensors")
    largest = max(arrays, key=lambda name: arrays[name].size)
    changed = arrays[largest].copy()
    changed[changed.size // 2] ^= 1
    save_file(arrays | {largest: changed}, out / "model.safetensors", {"format": "pt"})
    policy = loaded(out)
    with pytest.raises(CheckpointError):
        policy.predict_action_chunk(batch_of(seen(load_policy(run.policy), 1)))
    del arrays[largest]
    save_file(arrays, out / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError):
        loaded(out).predict_action_chunk(batch_of(seen(load_policy(run.policy), 1)))


def test_an_observation_that_lacks_something_is_named(run: Run, tmp_path: Path) -> None:
    policy = loaded(export_lerobot(run, tmp_path / "out"))
    batch = batch_of(seen(load_policy(run.policy), 1))
    del batch["observation.image"]
    with pytest.raises(KeyError, match=r"lacks 'observation\.image'"):
        policy.select_action(batch)


def test_a_policy_is_not_made_without_an_export() -> None:
    from lerobot_policy_classact import ClassactConfig, ClassactPolicy

    with pytest.raises(
        ValueError, match=r"a head on an encoder that classact pre-trained, .* or was exported: 'classact export"
    ):
        ClassactPolicy(ClassactConfig(device="cpu"))


def test_lerobot_eval_runs_it(run: Run, tmp_path: Path) -> None:
    out = export_lerobot(run, tmp_path / "policy")
    command = [
        *(str(Path(sys.executable).with_name("lerobot-eval")), f"--policy.path={out}", "--env.type=pusht"),
        *("--eval.n_episodes=2", "--eval.batch_size=2", "--policy.device=cpu", "--env.episode_length=24"),
        "--eval.use_async_envs=false",
        f"--output_dir={tmp_path / 'eval'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    info = json.loads((tmp_path / "eval/eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
