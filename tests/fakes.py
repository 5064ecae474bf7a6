"""Small demonstrations without files, and a policy and a simulator without models."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classact.data.actions import ActionSpace
from classact.data.schema import Schema
from classact.data.types import Criterion, Demonstrations, FloatArray, Observation, StateArray
from classact.evaluation.rows import EvaluationRow, IntermediateRow
from classact.models.encoders import EncoderConfig
from classact.policies.base import Decision, PolicySpec, Timestep, as_histories
from classact.similarity import SimilarityConfig
from classact.sims import SimulatorSpec, make_simulator
from classact.sims.pool import Simulators
from classact.train.config import AugmentConfig, OptimizerConfig, PretrainConfig

CRITERIA = ["iou>0.90", "coverage>0.90", "cov>=0.95@300"]  # of Push-T
STEPS = (30, 25, 7, 33, 25)  # one episode is shorter than a window
LENGTHS = (25, 20, 7, 25, 20, 25)  # of the demonstrations of a whole run


def demonstrations(
    seed: int = 0, size: int = 32, lengths: Sequence[int] = STEPS, name: str = "walks"
) -> Demonstrations:
    """Random walks in Push-T's world; images show where the agent is, and noise."""
    rng = np.random.default_rng(seed)
    walks = [100 + 312 * _walk(rng, length) for length in lengths]
    positions = np.concatenate(walks).astype(np.float32)
    targets = np.concatenate([np.concatenate([walk[1:], walk[-1:]]) for walk in walks]).astype(np.float32)
    block = rng.uniform(150, 350, (len(positions), 3))
    block[:, 2] %= 2 * np.pi
    images = rng.integers(0, 60, (len(positions), size, size, 3), dtype=np.uint8)
    for image, (x, y) in zip(images, (positions / 512 * (size - 6)).astype(int), strict=True):
        image[y : y + 6, x : x + 6] = 250
    return Demonstrations(
        name=name,
        episode_ends=np.cumsum(lengths, dtype=np.int64),
        actions=targets,
        proprioception=positions,
        states=np.concatenate([positions.astype(np.float64), block], axis=1),
        images={"top": images},
    )


def two_views(data: Demonstrations, language: int = 0, seed: int = 1) -> Demonstrations:
    """The same walks seen by two cameras that each show half of where the agent is: "top" its column, "wrist" its row;
    with an instruction for each episode where ``language`` is its embedding's size."""
    rng = np.random.default_rng(seed)
    steps, size = data.images["top"].shape[:2]
    views = {camera: rng.integers(0, 60, (steps, size, size, 3), dtype=np.uint8) for camera in ("top", "wrist")}
    for row, (x, y) in enumerate((data.proprioception / 512 * (size - 6)).astype(int)):
        views["top"][row, :, x : x + 6] = 250
        views["wrist"][row, y : y + 6] = 250
    words = rng.normal(size=(len(data), language)).astype(np.float32) if language else None
    return replace(data, images=views, language=words, schema=Schema())


def observations(data: Demonstrations, rows: Sequence[int]) -> list[Observation]:
    """What was recorded at some steps, without the simulator's state."""
    episodes = data.episode_index()
    return [
        Observation(
            {camera: array[row] for camera, array in data.images.items()},
            data.proprioception[row],
            language=None if data.language is None else data.language[episodes[row]],
        )
        for row in rows
    ]


def _walk(rng: np.random.Generator, length: int) -> np.ndarray:
    steps = rng.normal(0, 0.05, (length, 2)).cumsum(axis=0) + rng.uniform(0.2, 0.8, 2)
    return np.abs((steps % 2) - 1)  # reflected at 0 and 1


def write_zarr(path: Path, data: Demonstrations) -> Path:
    """The demonstrations as a Diffusion Policy store."""
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    assert data.states is not None
    content = {
        "data/img": np.asarray(data.images["top"]).astype(np.float32),
        "data/state": data.states.astype(np.float32),
        "data/action": data.actions,
        "meta/episode_ends": data.episode_ends,
    }
    for key, value in content.items():
        chunks = (min(64, len(value)), *value.shape[1:])
        group.create_array(key, shape=value.shape, chunks=chunks, dtype=value.dtype)[...] = value
    return path


def pretrain_config(**changes: object) -> PretrainConfig:
    """A training of well under a second."""
    standard: dict[str, object] = {
        "encoder": EncoderConfig(width=0.25, image_size=32, crop_size=28),
        "augment": AugmentConfig(feature_noise=0.001),
        "similarity": SimilarityConfig(quantile=0.1, pairs=4000),
        "optimizer": OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=1e-4, warmup_steps=2),
        "epochs": 0.5,
        "batch_size": 16,
        "precision": "float32",
        "log_every": 1,
        "checkpoint_every": 2,
    }
    return PretrainConfig(**(standard | changes))  # type: ignore[arg-type]


def stop_after(steps: int) -> Callable[..., None]:
    """A progress callback that presses Ctrl-C at a step."""

    def callback(step: int, *_: Any) -> None:
        if step == steps:
            os.kill(os.getpid(), signal.SIGINT)

    return callback


def equal(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    """Whether two networks hold the same numbers under the same names."""
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class Short:
    """Push-T with a time limit of two seconds, in the place of ``make_simulator``."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.sim = make_simulator(*args, **options)
        self.spec, self.close = replace(self.sim.spec, max_steps=20), self.sim.close


class Here:
    """A simulator worker without a process of its own: starting one takes longer than these episodes."""

    def __init__(self, arguments: tuple[Any, ...], _: list[str]) -> None:
        self.sims = Simulators(*arguments)
        self.close = self.sims.close

    def reset(self, *request: Any) -> None:
        self.answers = self.sims.reset(*request)

    def step(self, *request: Any) -> None:
        self.answers = self.sims.step(*request)

    def answer(self) -> list[Any]:
        return list(self.answers)


class Acts:
    """A policy whose spec is made of its attributes, and that is told by ``act`` what to do."""

    name = "acts"
    chunk_length = 1
    cameras: tuple[str, ...] = ()
    history = 1
    schema: Schema | None = None
    action_space: ActionSpace | None = None
    alarm: float | None = None

    @property
    def spec(self) -> PolicySpec:
        return PolicySpec(
            self.name, self.chunk_length, self.cameras, self.history, self.schema, self.action_space, self.alarm
        )

    def act(self, observations: Sequence[Timestep]) -> FloatArray:
        raise NotImplementedError

    def decide(self, observations: Sequence[Timestep]) -> Decision:
        return Decision(self.act(observations))

    def prepare(self, batch: int = 1) -> None:
        pass


class ChasePolicy(Acts):
    """Deterministic and nearly without arithmetic: walks around the block's position, as state and chunk tell."""

    name = "chase"

    def __init__(self, chunk_length: int = 8) -> None:
        self.chunk_length = chunk_length

    def act(self, observations: Sequence[Timestep]) -> FloatArray:
        observations = [o for (o,) in as_histories(observations, 1)]
        states = np.stack([o.state for o in observations if o.state is not None])
        angles = states[:, 4:5] + np.arange(self.chunk_length)  # (B, T)
        offsets = 40 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        return (states[:, None, 2:4] + offsets).astype(np.float32)


class WatchfulPolicy(ChasePolicy):
    """Decides from T_o observations: leans to where the agent went, and finds a block that turned far novel."""

    name = "watchful"
    alarm: float | None = 0.5

    def __init__(self, chunk_length: int = 8, history: int = 2) -> None:
        super().__init__(chunk_length)
        self.history = history

    def decide(self, observations: Sequence[Timestep]) -> Decision:
        histories = as_histories(observations, self.history)
        first, last = (np.stack([np.asarray(h[i].state) for h in histories]) for i in (0, -1))
        chunk = super().act([h[-1] for h in histories]) + (last - first)[:, None, :2]
        return Decision(chunk.astype(np.float32), (last[:, 4] / 7).astype(np.float32))


class LadderSimulator:
    """The state counts steps; the metric climbs by a quarter a step from seed / 100, through exactly 0.5 for seed 0."""

    def __init__(self, image_size: int = 96, shift: str = "plain") -> None:
        self.spec = SimulatorSpec(
            name="ladder",
            cameras=("front",),
            image_size=image_size,
            action_dim=1,
            proprioception_dim=1,
            state_dim=1,
            max_steps=7,
            control_hz=10.0,
            criteria=(Criterion("height>0.5", "height", 0.5),),
            shifts=(shift,),
            world=(0.0, 1.0),
        )
        self.steps, self.start = 0.0, 0.0

    def reset(self, seed: int) -> None:
        self.steps, self.start = 0.0, seed / 100

    def set_appearance(self, seed: int) -> None:
        pass

    def get_state(self) -> StateArray:
        return np.array([self.steps])

    def set_state(self, state: StateArray) -> None:
        self.steps = float(state[0])

    def step(self, action: FloatArray) -> Mapping[str, float]:
        self.steps += float(action[0])
        return {"height": self.start + self.steps / 4}

    def observe(self, *, render: bool = True) -> Observation:
        images = {"front": np.zeros((4, 4, 3), np.uint8)} if render else {}
        return Observation(images, self.get_state().astype(np.float32), self.get_state())

    def close(self) -> None:
        pass


def row(**changes: Any) -> EvaluationRow:
    """A row of results: half of two episodes succeed, unless ``changes`` say otherwise."""
    made: dict[str, Any] = {"policy": "retrieval", "encoder": "class", "simulator": "pusht", "shift": "fixed-color"}
    made |= {"evaluation": "retrieval-class-fixed-color", "criterion": "coverage>0.90", "episodes": 2, "successes": 1}
    return EvaluationRow(**made | {"success": 0.5, "low": 0.1, "high": 0.9} | changes)


def intermediate(**changes: Any) -> IntermediateRow:
    """The same, in the middle of a training."""
    at = {name: changes.pop(name, value) for name, value in (("stage", "pretrain"), ("step", 1), ("steps", 2))}
    return IntermediateRow(**vars(row(**changes)), **at)
