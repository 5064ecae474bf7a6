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

from classact.data import language
from classact.data.language import BERT, SIZE, STAND_IN, embed_instruction
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.schema import Schema
from classact.data.types import Observation
from classact.errors import ConfigError
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


def policy(head: str, source: str = STAND_IN, size: int = SIZE) -> ParametricPolicy:
    """For the toy, not trained: a head that is told what to do; ``source`` embeds instructions as ``size`` numbers."""
    schema = Schema(("wrist",), (("state", 3),), language=size)
    config = EncoderConfig(backbone="small", cameras=("wrist",), image_size=32, crop_size=28, aspect=4 / 3)
    encoder, unit = ImageEncoder(config), MinMax(np.full(3, -1, np.float32), np.full(3, 1, np.float32))
    lowdim = LowDim(schema, ("state",), unit, language_source=source)
    made = make_head(HEADS[head].config.preset("debug"), encoder.feature_dim + lowdim.dim, 3, 8)
    return ParametricPolicy(encoder, made, unit, lowdim, ParametricConfig(chunk_length=4))


@pytest.fixture(scope="module", params=["mlp", "diffusion"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ParametricPolicy, Path]:
    folder = tmp_path_factory.mktemp("policy")
    made = policy(request.param)
    return made, written(made, folder)


def written(made: ParametricPolicy, folder: Path) -> Path:
    """As LeRobot loads it."""
    made.save(folder / "classact")
    (folder / "lerobot").mkdir()
    write_lerobot_policy(folder / "classact", folder / "lerobot")
    return folder / "lerobot"


def loaded(folder: Path) -> Any:
    config = PreTrainedConfig.from_pretrained(folder)
    return get_policy_class(config.type).from_pretrained(folder, config=config)


def batch(words: Any) -> dict[str, Any]:
    """The toy's first observation with a task, as LeRobot gives it to a policy."""
    _, seen = observation(0, None)
    pixels = torch.from_numpy(seen.images["wrist"]).permute(2, 0, 1)[None].float() / 255
    state = torch.from_numpy(seen.proprioception)[None]
    return {"observation.state": state, "observation.images.wrist": pixels, "task": words}


def test_instructions_are_embedded_by_what_has_embedded_those_that_were_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(language, "source_at_hand", lambda: BERT)  # whatever is installed here
    monkeypatch.setattr(language, "bert_folder", lambda: None)
    made = policy("mlp")
    chunk = loaded(written(made, tmp_path)).predict_action_chunk(batch([TASK])).numpy()
    seen = observation(0, embed_instruction(TASK, STAND_IN)[0])[1]
    assert_allclose(chunk, made.decide([seen]).chunk, rtol=1e-6)
    (tmp_path / "bert").mkdir()
    with pytest.raises(ConfigError, match="bert-base-uncased needs transformers and its weights on this machine"):
        loaded(written(policy("mlp", BERT), tmp_path / "bert")).predict_action_chunk(batch([TASK]))
    (tmp_path / "own").mkdir()
    with pytest.raises(ConfigError, match="instructions as 512 numbers, and what embedded them is not known"):
        loaded(written(policy("mlp", "", 512), tmp_path / "own")).predict_action_chunk(batch([TASK]))
    monkeypatch.undo()
    (tmp_path / "unknown").mkdir()
    policy_without = loaded(written(policy("mlp", ""), tmp_path / "unknown"))
    for _ in range(2):
        policy_without.predict_action_chunk(batch([""]))
    assert [record.message.partition(" (")[0] for record in caplog.records] == [
        "what embedded the instructions that the policy was trained on is not known",
        "the policy was trained on instructions, but is given none",
    ]


def test_predict_action_is_what_a_runner_does(exported: tuple[ParametricPolicy, Path]) -> None:
    ours, folder = exported
    theirs = loaded(folder)
    pre, post = make_pre_post_processors(theirs.config, pretrained_path=str(folder))
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
