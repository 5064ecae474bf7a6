"""Heads that LeRobot's own lerobot-train trains on classact's encoders: .ci/lerobot runs this beside both."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

pytest.importorskip("lerobot", reason="needs LeRobot in an environment of its own: .ci/lerobot")
pytest.importorskip("lerobot_policy_classact", reason="needs plugins/lerobot_policy_classact: .ci/lerobot")

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_policy, make_pre_post_processors
from lerobot_policy_classact import ClassactConfig
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, default_collate

from classact.data.lerobot_writer import write_lerobot
from classact.data.lowdim import LowDim
from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations, Observation
from classact.data.windows import window_indices
from classact.errors import CheckpointError, ConfigError, DataError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.sims.pusht import FIXED_COLORS, draw
from classact.train.head import history_indices
from conftest import SHARED

pytestmark = pytest.mark.filterwarnings("ignore")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def data() -> Demonstrations:
    """Push-T, five episodes, 32 pixels."""
    found = read_demonstrations("pusht-expert", episodes=5)
    assert found.states is not None
    images = np.stack([draw(state, FIXED_COLORS, 32) for state in found.states])
    return replace(found.with_images({"top": images}), schema=replace(found.schema, cameras=("top",)))


@pytest.fixture(scope="module")
def root(data: Demonstrations, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lerobot(data, tmp_path_factory.mktemp("data") / "set", fps=10.0, images="png")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    ImageEncoder(EncoderConfig(backbone="small", cameras=("top",), image_size=32, crop_size=28)).save_pretrained(
        folder / "encoder"
    )
    return folder


def settings(start: Path, **changes: Any) -> ClassactConfig:
    given = {"encoder": str(start), "preset": "head-debug", "head": "mlp", "device": "cpu", "push_to_hub": False}
    return ClassactConfig(**given | changes)


def fresh(start: Path, root: Path, **changes: Any) -> tuple[Any, LeRobotDataset]:
    """As lerobot-train makes policy and data."""
    config, meta = settings(start, **changes), LeRobotDatasetMetadata("user/name", root=root)
    deltas = resolve_delta_timestamps(config, meta)
    torch.manual_seed(0)
    data = LeRobotDataset("user/name", root=root, delta_timestamps=deltas, video_backend="pyav")
    return make_policy(config, ds_meta=meta), data


@pytest.mark.parametrize("history", [1, 2])
def test_loss_windows_and_normalisation_are_classacts(
    data: Demonstrations, root: Path, encoder: Path, history: int
) -> None:
    policy, recorded = fresh(encoder, root, n_obs_steps=history)
    lowdim, actions = LowDim.fit(data), data.action_range()
    for found, expected in ((policy.trained.actions, actions), (policy.trained.lowdim.range, lowdim.range)):
        assert_array_equal(found.low, expected.low)
        assert_array_equal(found.high, expected.high)
    rows = np.array([0, 1, 60, data.bounds(0)[1] - 2, data.bounds(1)[0], data.num_steps - 1])
    pre, _ = make_pre_post_processors(policy.config, dataset_stats=recorded.meta.stats)
    policy.eval()
    loss, _ = policy.forward(pre(default_collate([recorded[int(row)] for row in rows])))
    seen = [
        Observation({"top": data.images["top"][step]}, data.proprioception[step])
        for step in history_indices(data.episode_ends, history)[rows].ravel()
    ]
    features = torch.from_numpy(policy.policy.features(seen).reshape(len(rows), -1))
    windows = torch.from_numpy(actions.apply(data.actions)[window_indices(data.episode_ends, 16)[rows]])
    expected_loss = policy.head.losses(policy.head.standardize(features), windows, ()).mean()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "preset", "frozen"),
    [("mlp", "head-debug", False), ("diffusion", "head-cpu", True), ("flow", "head-cpu", None)],
)
def test_the_loss_of_every_head_falls_and_it_acts(
    root: Path, encoder: Path, head: str, preset: str, frozen: bool | None, tmp_path: Path
) -> None:
    policy, recorded = fresh(encoder, root, head=head, preset=preset, frozen=frozen, head_lr=2e-3)
    before = {name: value.clone() for name, value in policy.encoder.state_dict().items()}
    pre, post = make_pre_post_processors(policy.config, dataset_stats=recorded.meta.stats)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    schedule = policy.config.get_scheduler_preset().build(optimizer, 40)
    policy.train()
    losses = []
    batches = iter(DataLoader(recorded, batch_size=24, shuffle=True, drop_last=True))
    kept = [pre(next(batches)) for _ in range(10)]
    for step in range(40):
        loss, _ = policy.forward(kept[step % len(kept)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        policy.update()
        losses.append(loss.item())
    assert np.mean(losses[-8:]) < 0.75 * np.mean(losses[:4]), losses
    same = all(torch.equal(before[name], value) for name, value in policy.encoder.state_dict().items())
    assert same == policy.finetune.frozen
    policy.save_pretrained(tmp_path)
    for processor in (pre, post):
        processor.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    again = get_policy_class(config.type).from_pretrained(tmp_path, config=config)
    one = {name: value[:3] for name, value in kept[0].items() if name.startswith("observation")}
    policy.eval()
    chunk = policy.predict_action_chunk(one)
    assert chunk.shape == (3, 8, 2)
    assert_array_equal(again.predict_action_chunk(one).numpy(), chunk.numpy())
    assert_array_equal(torch.stack([again.select_action(one) for _ in range(8)], dim=1).numpy(), chunk.numpy())


def run(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    program = str(Path(sys.executable).with_name(command))
    return subprocess.run([program, *words], env=environment, capture_output=True, text=True, timeout=600, check=False)


def test_lerobot_train_checkpoints_resumes_and_lerobot_eval_evaluates(
    root: Path, encoder: Path, tmp_path: Path
) -> None:
    words = ["--policy.type=classact", f"--policy.encoder={encoder}", "--policy.head=flow", "--policy.device=cpu"]
    words += ["--policy.push_to_hub=false", f"--dataset.root={root}", "--dataset.repo_id=user/name", "--steps=6"]
    words += ["--save_freq=3", "--batch_size=8", "--num_workers=0", "--log_freq=1"]
    done = run("lerobot-train", *words, f"--output_dir={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr[-3000:]
    part = tmp_path / "part"
    (tmp_path / "whole/checkpoints/000003").rename(tmp_path / "000003")
    (part / "checkpoints").mkdir(parents=True)
    (tmp_path / "000003").rename(part / "checkpoints/000003")
    settings_file = part / "checkpoints/000003/pretrained_model/train_config.json"
    done = run("lerobot-train", f"--config_path={settings_file}", "--resume=true", f"--output_dir={part}")
    assert done.returncode == 0, done.stderr[-3000:]
    whole, resumed = (
        load_file(folder / "checkpoints/000006/pretrained_model/model.safetensors")
        for folder in (tmp_path / "whole", part)
    )
    assert whole.keys() == resumed.keys()
    assert int(whole["updates"]) == 6
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0, msg=name)
    done = run(
        "lerobot-eval",
        f"--policy.path={part / 'checkpoints/000006/pretrained_model'}",
        *("--policy.device=cpu", "--env.type=pusht", "--env.episode_length=10", "--eval.n_episodes=1"),
        *("--eval.batch_size=1", "--eval.use_async_envs=false", f"--output_dir={tmp_path / 'eval'}"),
        '--rename_map={"observation.image": "observation.images.top"}',
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "eval/eval_info.json").is_file()


def test_one_clear_error_of_the_command(root: Path, tmp_path: Path) -> None:
    words = ["--policy.type=classact", f"--policy.encoder={tmp_path / 'nowhere'}", "--policy.device=cpu"]
    words += ["--policy.push_to_hub=false", f"--dataset.root={root}", "--dataset.repo_id=user/name"]
    done = run("lerobot-train", *words, f"--output_dir={tmp_path / 'out'}")
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "nowhere" in last
    assert "classact" in last


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder": None},
            r"a head on an encoder that classact pre-trained, --policy\.encoder=.*export lerobot RUN OUT",
        ),
        ({"head": "mpl"}, r"--policy\.head: unknown head 'mpl'.*did you mean 'mlp'"),
        ({"preset": "head-cup"}, r"--policy\.preset: unknown preset of a head 'head-cup'"),
        ({"n_action_steps": 17}, r"chunk_length.*16.*17"),
        ({"cameras": {"wrist": "observation.images.top"}}, r"--policy\.cameras names 'wrist'; the encoder sees top"),
        (
            {"cameras": {"top": "observation.image"}},
            r"there is no feature 'observation\.image': cameras are observation",
        ),
        (
            {"proprioception": {"q": "observation.q"}},
            r"names feature 'observation\.q' for 'q'; .* are observation\.state",
        ),
        (
            {"normalization_mapping": {"ACTION": NormalizationMode.MEAN_STD}},
            r"must stay IDENTITY, got .*'ACTION': 'MEAN_STD'",
        ),
    ],
)
def test_wrong_settings_are_one_clear_error(root: Path, encoder: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fresh(encoder, root, **changes)


def test_a_camera_of_another_name_is_taken_where_there_is_one_and_asked_for_else(root: Path, tmp_path: Path) -> None:
    def saved(*cameras: str) -> Path:
        config = EncoderConfig(backbone="small", cameras=cameras, image_size=32, crop_size=28)
        ImageEncoder(config).save_pretrained(tmp_path / "-".join(cameras))
        return tmp_path / "-".join(cameras)

    policy, _ = fresh(saved("front"), root)
    assert policy.config.cameras == {"front": "observation.images.top"}
    with pytest.raises(ConfigError, match=r"sees camera 'front', but none .* has that name: .*--policy\.cameras='"):
        fresh(saved("front", "top"), root)


def test_without_recorded_ranges_nothing_is_trained(root: Path, encoder: Path) -> None:
    meta = LeRobotDatasetMetadata("user/name", root=root)
    del meta.stats["action"]["min"]
    with pytest.raises(DataError, match="lacks the smallest and largest values of 'action' \\(2 dimensions\\)"):
        make_policy(settings(encoder), ds_meta=meta)


def test_a_batch_of_another_chunk_size_or_data_of_other_features_are_refused(root: Path, encoder: Path) -> None:
    policy, recorded = fresh(encoder, root)
    batch = default_collate([recorded[0], recorded[1]])
    with pytest.raises(ConfigError, match=r"expected actions of shape \(B, 16, 2\), .* got \(2, 4, 2\)"):
        policy.forward(batch | {"action": batch["action"][:, :4]})
    with pytest.raises(KeyError, match=r"lacks 'observation\.images\.top'; there are \['action'"):
        policy.forward({name: value for name, value in batch.items() if "images" not in name})
    meta = LeRobotDatasetMetadata("user/name", root=root)
    meta.info.features["observation.state"]["shape"] = (7,)
    config = replace(policy.config)
    with pytest.raises(ConfigError, match=r"'observation\.state' has 7 dimensions, the head was made for 2"):
        make_policy(config, ds_meta=meta)
    with pytest.raises(ConfigError, match="made with horizon 16, which cannot become 24"):
        make_policy(replace(policy.config, horizon=24), ds_meta=recorded.meta)


# What plugins before this one taught


def test_weights_that_are_missing_or_of_another_shape_are_an_error_though_lerobot_loads_leniently(
    root: Path, encoder: Path, tmp_path: Path
) -> None:
    policy, _ = fresh(encoder, root)
    policy.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(one for one in weights if one.startswith("average_head"))
    for changed in ({k: v for k, v in weights.items() if k != name}, weights | {name: torch.zeros(3, 3, 3, 3)}):
        save_file(changed, tmp_path / "model.safetensors", {"format": "pt"})
        with pytest.raises(CheckpointError, match=r"does not hold the weights that config\.json describes"):
            type(policy).from_pretrained(tmp_path, strict=False)


def test_nothing_is_normalised_by_lerobot_with_or_without_statistics(root: Path, encoder: Path) -> None:
    policy, recorded = fresh(encoder, root)
    item = default_collate([recorded[5]])
    for stats in (recorded.meta.stats, None):
        pre, post = make_pre_post_processors(policy.config, dataset_stats=stats)
        assert_array_equal(pre(dict(item))["observation.state"].numpy(), item["observation.state"].numpy())
        assert_array_equal(post(item["action"][:, 0]).numpy(), item["action"][:, 0].numpy())


def test_names_are_those_by_which_lerobot_finds_it(root: Path, encoder: Path) -> None:
    names = [one.metadata["Name"] for one in importlib.metadata.distributions()]
    assert "lerobot_policy_classact" in names  # underscores: LeRobot imports the distribution by its name
    policy, recorded = fresh(encoder, root)
    policy.eval()
    seen = {k: v for k, v in default_collate([recorded[5]]).items() if k.startswith("observation")}
    first = policy.select_action(seen)
    assert isinstance(policy._action_queue, deque)  # which LeRobot clears to have a policy decide anew
    policy._action_queue.clear()
    assert_array_equal(policy.select_action(seen).numpy(), first.numpy())


@pytest.mark.parametrize("name", ["video_v3.0", "multi_v3.0", "arm_v3.0", "image_v3.0"])
def test_data_that_lerobot_recorded(name: str, tmp_path: Path) -> None:
    path = SHARED / "formats/lerobot" / name
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    ours = read_demonstrations(path)
    shapes = {camera: images.shape for camera, images in ours.images.items()}
    aspect = tuple(shape[2] / shape[1] for shape in shapes.values())
    config = EncoderConfig(backbone="small", cameras=tuple(shapes), image_size=32, crop_size=28, aspect=aspect)
    ImageEncoder(config).save_pretrained(tmp_path / "encoder")
    policy, recorded = fresh(tmp_path / "encoder", path)
    assert policy.trained.lowdim.schema.language == (0 if ours.language is None else ours.language.shape[1])
    assert_array_equal(policy.trained.actions.low, ours.action_range().low)
    pre, _ = make_pre_post_processors(policy.config, dataset_stats=recorded.meta.stats)
    loss, _ = policy.forward(pre(default_collate([recorded[i] for i in range(3)])))
    assert torch.isfinite(loss)
    policy.eval()
    plain = LeRobotDataset("user/name", root=path, video_backend="pyav")
    action = policy.select_action(pre(dict(plain[0])))
    assert action.shape == (1, ours.actions.shape[1])
