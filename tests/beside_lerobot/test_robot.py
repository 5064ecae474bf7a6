"""The real lerobot-rollout drives a robot by exported policies; the robot is a toy that LeRobot finds as a plugin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

pytest.importorskip("lerobot", reason="needs LeRobot in an environment of its own: .ci/lerobot")
pytest.importorskip("lerobot_policy_classact", reason="needs plugins/lerobot_policy_classact: .ci/lerobot")

from lerobot.common.control_utils import predict_action
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from classact.data.language import SIZE, embed_instruction
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.schema import Schema
from classact.data.types import Observation
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.heads import HEADS
from classact.models.heads.base import make_head
from classact.policies import Runner
from classact.policies.config import ParametricConfig
from classact.policies.parametric import ParametricPolicy
from classact.run.export import write_lerobot_policy

pytestmark = pytest.mark.filterwarnings("ignore")

JOINTS = ("shoulder.pos", "elbow.pos", "gripper.pos")
TASK = "put it away"

ROBOT = '''
import json
import os
from dataclasses import dataclass

import numpy as np
from lerobot.robots import Robot, RobotConfig


@RobotConfig.register_subclass("toy_arm")
@dataclass(kw_only=True)
class ToyArmConfig(RobotConfig):
    out: str = ""


class ToyArm(Robot):
    """Its n-th observation is drawn from n; it writes down what it is told to do."""

    config_class = ToyArmConfig
    name = "toy_arm"

    def __init__(self, config):
        super().__init__(config)
        self.out, self.count, self.told, self.connected = config.out, 0, [], False

    observation_features = {**dict.fromkeys(JOINTS, float), "wrist": (48, 64, 3)}
    action_features = dict.fromkeys(JOINTS, float)
    is_connected = property(lambda self: self.connected)
    is_calibrated = True

    def connect(self, calibrate=True):
        self.connected = True

    def calibrate(self):
        pass

    def configure(self):
        pass

    def get_observation(self):
        rng = np.random.default_rng(self.count)
        self.count += 1
        values = {name: float(np.float32(rng.uniform(-1, 1))) for name in JOINTS}
        return values | {"wrist": rng.integers(0, 256, (48, 64, 3), np.uint8)}

    def send_action(self, action):
        self.told.append([self.count - 1, *(float(action[name]) for name in JOINTS)])
        with open(self.out, "w") as file:
            json.dump(self.told, file)
        return action

    def disconnect(self):
        self.connected = False
'''


def observation(number: int, words: Any) -> tuple[dict[str, float], Observation]:
    """The toy's."""
    rng = np.random.default_rng(number)
    joints = {name: float(np.float32(rng.uniform(-1, 1))) for name in JOINTS}
    image = rng.integers(0, 256, (48, 64, 3), np.uint8)
    return joints, Observation({"wrist": image}, np.array(list(joints.values()), np.float32), language=words)


def policy(head: str) -> ParametricPolicy:
    """For the toy, not trained: a head that is told to do by camera, joints and instruction."""
    schema = Schema(("wrist",), (("state", 3),), language=SIZE)
    config = EncoderConfig(backbone="small", cameras=("wrist",), image_size=32, crop_size=28, aspect=4 / 3)
    encoder, unit = ImageEncoder(config), MinMax(np.full(3, -1, np.float32), np.full(3, 1, np.float32))
    lowdim = LowDim(schema, ("state",), unit)
    made = make_head(HEADS[head].config.preset("debug"), encoder.feature_dim + lowdim.dim, 3, 8)
    return ParametricPolicy(encoder, made, unit, lowdim, ParametricConfig(chunk_length=4))


@pytest.fixture(scope="module", params=["mlp", "diffusion"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ParametricPolicy, Path]:
    folder = tmp_path_factory.mktemp("policy")
    made = policy(request.param)
    made.save(folder / "classact")
    (folder / "lerobot").mkdir()
    write_lerobot_policy(folder / "classact", folder / "lerobot")
    return made, folder / "lerobot"


def test_predict_action_is_what_a_runner_does(exported: tuple[ParametricPolicy, Path]) -> None:
    ours, folder = exported
    config = PreTrainedConfig.from_pretrained(folder)
    theirs = get_policy_class(config.type).from_pretrained(folder, config=config)
    pre, post = make_pre_post_processors(config, pretrained_path=str(folder))
    runner, words = Runner(ours), embed_instruction(TASK)[0]
    for number in range(10):
        _, seen = observation(number, words)
        frame = {"observation.state": seen.proprioception, "observation.images.wrist": seen.images["wrist"]}
        action = predict_action(frame, theirs, torch.device("cpu"), pre, post, use_amp=False, task=TASK)
        assert_allclose(action.squeeze(0).numpy(), runner.step(seen), rtol=1e-6)


def test_lerobot_rollout_drives_a_robot(exported: tuple[ParametricPolicy, Path], tmp_path: Path) -> None:
    ours, folder = exported
    (tmp_path / "site/lerobot_robot_toy").mkdir(parents=True)
    module = f"JOINTS = {JOINTS!r}\n{ROBOT}"
    (tmp_path / "site/lerobot_robot_toy/__init__.py").write_text(module)
    (tmp_path / "site/lerobot_robot_toy-1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: lerobot_robot_toy\nVersion: 1\n"
    (tmp_path / "site/lerobot_robot_toy-1.dist-info/METADATA").write_text(metadata)
    paths = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [
        f"--policy.path={folder}",
        "--robot.type=toy_arm",
        "--robot.id=toy",
        f"--robot.out={tmp_path / 'told.json'}",
    ]
    words += [f"--robot.calibration_dir={tmp_path}", "--fps=10", "--duration=3", f"--task={TASK}", "--device=cpu"]
    words += ["--play_sounds=false", "--return_to_initial_position=false"]
    program = str(Path(sys.executable).with_name("lerobot-rollout"))
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads((tmp_path / "told.json").read_text())
    assert len(told) >= 5
    runner, embedded = Runner(ours), embed_instruction(TASK)[0]
    for number, *action in told:  # observation 0 is of the start, before the policy is asked
        assert_allclose(action, runner.step(observation(number, embedded)[1]), rtol=1e-5, atol=1e-6)
