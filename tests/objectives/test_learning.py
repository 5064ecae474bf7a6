"""What short trainings on human Push-T demonstrations make of an encoder, judged on episodes that none has seen.

Twenty episodes are learned from, five are retrieved for, by image features alone. What was found when this was written,
of three seeds each (mean and standard deviation):

================  ===================  =================  ==============
encoder           action error, k 16   rank correlation   effective rank
================  ===================  =================  ==============
untrained         0.294 +- 0.011       0.36 +- 0.06       49 +- 2
class             0.258 +- 0.002       0.75 +- 0.01       22 +- 1
inverse-dynamics  0.251 +- 0.010       0.68 +- 0.01       29 +- 2
tcn               0.267 +- 0.008       0.72 +- 0.03       16 +- 2
byol              0.273 +- 0.009       0.71 +- 0.02       19 +- 1
time-contrastive  0.272 +- 0.013       0.65 +- 0.01       21 +- 1
dynamo            0.330 +- 0.013       0.34 +- 0.05       38 +- 1
================  ===================  =================  ==============

So a few seconds suffice those who read actions to retrieve better ones, and all but DynaMo to place timesteps by what
is done in them. DynaMo's loss falls to a hundredth, and its features are no better for it; here it has to learn without
collapsing, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations
from classact.evaluation.probe import Encoded, ProbeConfig, probe_latents
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.objectives import OBJECTIVES, objective_config
from classact.run.config import FramesConfig
from classact.run.frames import prepare_frames
from classact.similarity import SimilarityConfig
from classact.train.config import OptimizerConfig, PretrainConfig
from classact.train.representation import Trainer
from classact.utils.storage import read_jsonl

SEEDS = (0, 1, 2)
"""Of encoders that are not trained; each training has seed 0."""

ENCODER = EncoderConfig(width=0.25, image_size=32, crop_size=28)
SIMILARITY = SimilarityConfig(quantile=0.02, pairs=100_000)
PROBE = ProbeConfig(ks=(1, 4, 16), temperature=0.05, queries=600, pairs=2000, steps=300, similarity=SIMILARITY)


@dataclass(frozen=True)
class Training:
    """A training and what it must reach: in each half way or more from what was measured to what would be nothing.

    Attributes:
        steps, batch: updates, and anchors of each.
        loss: largest share of its beginning that the loss may have at the end.
        rank: smallest effective rank of the features; 1 where all collapsed.
        error: largest share that the action error may have of an untrained encoder's; None: it is not asked.
        orders: whether distances of features must follow those of actions.
        options: of the objective.
    """

    steps: int
    batch: int
    loss: float
    rank: float
    error: float | None = None
    orders: bool = True
    options: tuple[str, ...] = ()


TRAININGS: Mapping[str, Training] = {
    "class": Training(200, 64, loss=0.8, rank=10, error=0.93),
    "inverse-dynamics": Training(400, 32, loss=0.3, rank=14, error=0.95, options=("horizon=4",)),
    "tcn": Training(150, 32, loss=0.4, rank=8),
    "byol": Training(150, 48, loss=0.4, rank=9, options=("hidden=256", "projection=64")),
    "time-contrastive": Training(150, 32, loss=0.9, rank=10, options=("negatives=0",)),
    "dynamo": Training(150, 16, loss=0.1, rank=18, orders=False, options=("layers=2",)),
}
pytestmark = pytest.mark.usefixtures("quick")
NAMES = pytest.mark.parametrize("name", TRAININGS)


@pytest.fixture(scope="module")
def episodes(human_zarr: Path) -> tuple[Demonstrations, Demonstrations]:
    """To learn from, and to be judged on."""
    data = read_demonstrations(human_zarr, episodes=25)
    frames = prepare_frames(data, ("top",), ENCODER.image_size, FramesConfig(source="recorded"))
    return frames.subset(range(20)), frames.subset(range(20, 25))


def features(encoder: ImageEncoder, data: Demonstrations) -> Any:
    """(N, F) of images alone: proprioception, which finds good neighbours by itself, is left out."""
    with torch.inference_mode():
        return encoder.eval().encode(data.images)


def judge(encoders: Mapping[str, ImageEncoder], known: Demonstrations, new: Demonstrations) -> dict[str, Any]:
    bank, asked = (
        Encoded({name: features(e, data) for name, e in encoders.items()}, data.actions, data.episode_ends)
        for data in (known, new)
    )
    return dict(probe_latents(bank, asked, config=PROBE)["representations"])


@pytest.fixture(scope="module")
def untrained(episodes: Any) -> dict[str, Any]:
    return judge({str(seed): ImageEncoder(ENCODER, seed=seed) for seed in SEEDS}, *episodes)


@dataclass(frozen=True)
class Trained:
    """What came of a training: figures of its averaged encoder, and the loss of each step."""

    figures: Mapping[str, Any]
    losses: Any


@pytest.fixture(scope="module")
def trained(episodes: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    done: dict[str, Trained] = {}

    def run(name: str) -> Trained:
        if name not in done:
            known, settings, folder = episodes[0], TRAININGS[name], tmp_path_factory.mktemp("run")
            config = PretrainConfig(
                encoder=ENCODER,
                objective=objective_config(name, settings.options),
                similarity=SIMILARITY,
                optimizer=OptimizerConfig(name="adamw", learning_rate=2e-3, weight_decay=1e-4, warmup_steps=10),
                epochs=settings.steps * settings.batch / known.num_steps,
                batch_size=settings.batch,
                precision="float32",
                log_every=1,
                checkpoint_every=settings.steps,
            )
            encoder = Trainer(known, config, folder).fit()
            losses = np.array([row["loss"] for row in read_jsonl(folder / "train.jsonl")])
            done[name] = Trained(judge({name: encoder}, *episodes)[name], losses)
        return done[name]

    return run


def action_error(figures: Mapping[str, Any], k: int) -> float:
    """Mean distance of retrieved from demonstrated chunks, where actions are scaled to -1..1."""
    return next(float(entry["l2"]["value"]) for entry in figures["action_error"] if entry["k"] == k)


def test_every_objective_is_tried() -> None:
    assert set(TRAININGS) == {name for name, entry in OBJECTIVES.items() if entry.make is not None}


@NAMES
def test_the_loss_falls(name: str, trained: Any) -> None:
    losses, settings = trained(name).losses, TRAININGS[name]
    assert len(losses) == settings.steps
    tenth = settings.steps // 10
    first, last = losses[:tenth], losses[-2 * tenth :]
    assert last.mean() < settings.loss * first.mean(), (first.mean(), last.mean())
    assert last.mean() + 3 * last.std() / len(last) ** 0.5 < first.mean()


@NAMES
def test_features_do_not_collapse(name: str, trained: Any) -> None:
    assert trained(name).figures["effective_rank"]["value"] > TRAININGS[name].rank


@pytest.mark.parametrize("name", [name for name, training in TRAININGS.items() if training.error is not None])
def test_actions_are_retrieved_better_than_without_training(name: str, trained: Any, untrained: Any) -> None:
    before = [action_error(figures, 16) for figures in untrained.values()]
    limit = TRAININGS[name].error * np.mean(before)
    # Three of its standard deviations above what the training reaches, and below the luckiest of the untrained.
    assert limit < min(before)
    assert action_error(trained(name).figures, 16) < limit, before


@pytest.mark.parametrize("name", [name for name, training in TRAININGS.items() if training.orders])
def test_features_follow_actions(name: str, trained: Any, untrained: Any) -> None:
    before = max(float(figures["rank_correlation"]["value"]) for figures in untrained.values())
    assert before < 0.5
    assert trained(name).figures["rank_correlation"]["value"] > 0.55
