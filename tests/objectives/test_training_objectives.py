"""What every objective owes to a training: the same bits, stopped or not, in parts or whole; and the views of a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import Tensor

import fakes
from classact.errors import CheckpointError, ConfigError, TrainingInterrupted
from classact.models.encoders import EncoderConfig
from classact.objectives import ObjectiveConfig, objective_config
from classact.similarity import SimilarityConfig
from classact.train import representation as training
from classact.train.augment import Part
from classact.train.batches import epoch_batches
from classact.train.checkpoints import STATE, load_checkpoint
from classact.train.config import AugmentConfig, EngineConfig
from classact.train.engine import in_order, step_generator
from classact.train.representation import Trainer, random_views
from classact.utils.storage import read_jsonl
from small_objectives import TRAINED, small

STEPS, BATCH = 4, 16
QUEUE = ("queue=24", "views=2", "learned_temperature=true", "pairs=cross-episode", "temperature=0.2")
CASES: Mapping[str, ObjectiveConfig] = {
    **{name: small(name) for name in (*TRAINED, "class+0.1*inverse-dynamics", "class+byol")},
    "class, all settings": small("class", *QUEUE),
    "dynamo, ema": small("dynamo", "target=ema"),
}
pytestmark = pytest.mark.usefixtures("quick")
CASE = pytest.mark.parametrize("case", CASES)


def make(objective: ObjectiveConfig, folder: Path | None = None, accumulate: int = 1, **changes: Any) -> Trainer:
    standard = {
        "objective": objective,
        "batch_size": BATCH,
        "epochs": STEPS * BATCH / sum(fakes.STEPS),
        "similarity": SimilarityConfig(quantile=0.3, pairs=4000),
        "augment": AugmentConfig(feature_noise=0.001, color="hsv"),
    }
    made = Trainer(
        fakes.demonstrations(),
        fakes.pretrain_config(**(standard | changes)),
        folder,
        engine=EngineConfig(accumulate=accumulate),
    )
    assert made.steps == STEPS
    return made


def weights(made: Trainer) -> dict[str, Tensor]:
    """All that a training changes: encoder, its average, the objective's own modules and queue, the target network."""
    networks = made.networks | {f"average.{name}": network for name, network in made.averages.items()}
    return {
        f"{name}.{key}": value.clone()
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }


def equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def moved(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> set[str]:
    return {key for key in one if not torch.equal(one[key], two[key])}


def state_bytes(folder: Path) -> bytes:
    return (folder / "checkpoints" / f"step-{STEPS:08d}" / STATE).read_bytes()


@dataclass(frozen=True)
class Straight:
    """A training that was not stopped: its folder, what it began with, and what it ended with."""

    folder: Path
    start: Mapping[str, Tensor]
    end: Mapping[str, Tensor]
    trained: int
    generators_alone: bool


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    done: dict[str, Straight] = {}

    def run(case: str) -> Straight:
        if case not in done:
            folder = tmp_path_factory.mktemp("straight")
            before, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
            made = make(CASES[case], folder)
            start = weights(made)
            made.fit()
            alone = torch.equal(torch.random.get_rng_state(), before)
            alone = alone and np.array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002
            trained = sum(p.numel() for p in made.objective.parameters() if p.requires_grad)
            done[case] = Straight(folder, start, weights(made), trained, alone)
        return done[case]

    return run


# -- the training --------------------------------------------------------------------------------------------------


@CASE
def test_all_that_is_to_change_does(case: str, straight: Any) -> None:
    found = straight(case)
    made = make(CASES[case])
    own = {f"objective.{name}" for name, p in made.objective.named_parameters() if p.requires_grad}
    assert found.trained == 0 or own
    changed = moved(found.start, found.end)
    assert {f"encoder.{name}" for name, _ in made.encoder.named_parameters()} <= changed
    assert own <= changed
    if made.objective.config.target_decay is not None:
        assert {f"target.{name}" for name, _ in made.encoder.named_parameters()} <= changed
    for name, tensor in found.end.items():
        assert tensor.isfinite().all(), name


@CASE
def test_the_log(case: str, straight: Any) -> None:
    rows = read_jsonl(straight(case).folder / "train.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert all(np.isfinite(value) for value in row.values()), row
        assert row["grad_norm"] > 0
        for part in getattr(CASES[case], "parts", ()):
            assert f"{part.name.replace('-', '_')}_loss" in row
    assert len({row["loss"] for row in rows}) > 1


@CASE
def test_the_global_generators_are_left_alone(case: str, straight: Any) -> None:
    assert straight(case).generators_alone


@CASE
def test_same_seed_same_bits_other_seed_other_bits(case: str, straight: Any) -> None:
    first, again, other = straight(case), make(CASES[case]), make(CASES[case], seed=1)
    start = weights(other)
    assert equal(weights(again), first.start)
    for made in (again, other):
        made.fit()
    assert equal(weights(again), first.end)
    for name in ("encoder", "objective", "target"):
        keys = {key for key in first.end if key.startswith(f"{name}.")}
        assert not keys or keys & moved(first.end, weights(other)), name
    # The objective's own networks begin elsewhere, too, not only what they are fed.
    drawn = {
        f"objective.{name}"
        for name, p in other.objective.named_parameters()
        if p.ndim > 1 and not torch.equal(p.detach(), torch.zeros_like(p))
    }
    assert drawn <= moved(first.start, start)


@CASE
def test_two_steps_then_resume_to_four_equals_four_straight(case: str, straight: Any, tmp_path: Path) -> None:
    expected = straight(case)
    with pytest.raises(TrainingInterrupted, match=r"stopped at step 2 of 4; the state is saved in"):
        make(CASES[case], tmp_path).fit(fakes.stop_after(2))
    resumed = make(CASES[case], tmp_path)
    resumed.fit()
    assert resumed.step == STEPS
    assert equal(weights(resumed), expected.end)
    assert state_bytes(tmp_path) == state_bytes(expected.folder)
    logs = [[row["loss"] for row in read_jsonl(folder / "train.jsonl")] for folder in (tmp_path, expected.folder)]
    assert logs[0] == logs[1]


def test_a_checkpoint_keeps_what_an_objective_remembers(straight: Any) -> None:
    def names(case: str) -> set[str]:
        return set(load_checkpoint(straight(case).folder / "checkpoints" / f"step-{STEPS:08d}").tensors)

    queue = names("class, all settings")
    assert {"model.objective.queue_z", "model.objective.queue_steps", "model.objective.scaled_log_tau"} <= queue
    byol = names("byol")
    assert {"model.target.views.0.backbone.stem.0.weight", "model.objective.target_projector.0.weight"} <= byol
    assert not any(name.startswith(("model.objective", "model.target")) for name in names("class"))  # as ever


@CASE
def test_a_checkpoint_of_another_objective_is_refused(case: str, straight: Any) -> None:
    names = list(CASES)
    other = names[names.index(case) - 1]
    with pytest.raises(CheckpointError, match=r"was made with config\.objective\."):
        make(CASES[other], straight(case).folder).fit()


def test_a_checkpoint_of_other_settings_of_the_objective_is_refused(straight: Any) -> None:
    for case, changed, message in (
        ("byol", small("byol", "decay=0.9"), r"config\.objective\.decay = 0\.99, now it is 0\.9"),
        ("class", small("class", "weighting=hard"), r"config\.objective\.weighting = 'soft', now it is 'hard'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            make(changed, straight(case).folder).fit()


def smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    """No kink, at which the last bit of a sum decides on a slope."""
    monkeypatch.setattr(torch, "relu", torch.nn.functional.silu)


def gradients(made: Trainer, step: int = 0) -> dict[str, Tensor]:
    """Of one step, before clipping and the optimiser, which hide factors."""
    rows = in_order(next(made.batches(step)))
    part = made.ranks.part(len(rows))
    assert made.loader is not None
    images = made.loader.take(made.timesteps(rows[part]))
    made.gradients(rows, part, images, step_generator(made.config.seed, step, torch.device("cpu")))
    parameters = [*made.encoder.named_parameters(), *made.objective.named_parameters(prefix="objective")]
    return {name: p.grad.clone() for name, p in parameters if p.grad is not None}


@CASE
@pytest.mark.parametrize("count", [2, 3])
def test_micro_batches_have_the_gradient_of_the_batch(case: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of 16 rows in 3 parts no part has as many as another has, and companions may be in another part.
    smooth(monkeypatch)
    whole, parts = gradients(make(CASES[case])), gradients(make(CASES[case], accumulate=count))
    assert whole.keys() == parts.keys()
    length = torch.stack([gradient.norm() for gradient in whole.values()]).norm()
    for name, expected in whole.items():
        # Half a gradient, or one of half the negatives, is 0.1 away and more. What BatchNorm takes away again (the bias
        # before it) has no gradient but rounding.
        assert (parts[name] - expected).norm() <= 1e-3 * expected.norm() + 1e-6 * length, name


@CASE
def test_rows_are_a_function_of_seed_and_step(case: str) -> None:
    made, other = make(CASES[case]), make(CASES[case], seed=1)
    shape = (BATCH, 1 + made.objective.config.companions) if made.objective.config.companions else (BATCH,)
    drawn = list(islice(made.batches(0), 5))
    anchors = list(islice(epoch_batches(sum(fakes.STEPS), BATCH, 0, 0), 5))
    for step, rows in enumerate(drawn):
        assert rows.shape == shape
        assert_array_equal(rows.reshape(BATCH, -1)[:, 0], anchors[step])
        assert_array_equal(next(made.batches(step)), rows)
        assert ((rows >= 0) & (rows < sum(fakes.STEPS))).all()
    assert not np.array_equal(next(other.batches(0)), drawn[0])


@CASE
def test_similarity_is_measured_for_those_who_need_it(case: str) -> None:
    made = make(CASES[case])
    assert (made.similarity is not None) == CASES[case].needs_similarity == made.objective.config.needs_similarity


@pytest.mark.parametrize("case", [case for case, config in CASES.items() if "byol" in case or "ema" in case])
def test_targets_follow_what_was_trained(case: str) -> None:
    made = make(CASES[case])
    decay = made.objective.config.target_decay
    assert decay == 0.99
    assert fakes.equal(made.target, made.encoder)
    for step in range(2):
        before = [p.clone() for p in made.target.parameters()]
        made.train_step(next(made.batches(step)))
        for target, old, new in zip(made.target.parameters(), before, made.encoder.parameters(), strict=True):
            torch.testing.assert_close(target, decay * old + (1 - decay) * new.detach())
            assert not target.requires_grad
            assert target.grad is None


def test_settings_that_do_not_fit_show_before_the_similarity_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "ActionSimilarity", None)  # would fail otherwise
    objective = objective_config("class+time-contrastive")
    with pytest.raises(ConfigError, match="needs an episode of at least 3 steps, but the longest of 30 "):
        Trainer(fakes.demonstrations(lengths=(2,) * 30), fakes.pretrain_config(objective=objective))


@CASE
def test_images_per_row_counts_what_the_encoder_sees(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = make(CASES[case]), []
    encode = made._encode
    monkeypatch.setattr(made, "_encode", lambda pixels: seen.append(len(pixels)) or encode(pixels))
    made.train_step(next(made.batches(0)))
    assert sum(seen) == BATCH * made.images_per_row() == BATCH * CASES[case].images_per_anchor


# -- views ---------------------------------------------------------------------------------------------------------

SIZE, CROP = 32, 20
ENCODER = EncoderConfig(width=0.25, image_size=SIZE, crop_size=CROP)
VIEWED = ("class", "tcn", "dynamo", "byol", "class, all settings", "class+byol", "class+0.1*inverse-dynamics", "both")
PLAIN, COLORFUL = AugmentConfig(noise_std=0.0), AugmentConfig(noise_std=3.0, color="rotate")


def viewer(case: str, augment: AugmentConfig, cameras: tuple[str, ...] = ("top",)) -> Trainer:
    objective = CASES.get(case) or small("dynamo+0.5*byol")
    data = fakes.two_views(fakes.demonstrations()) if len(cameras) > 1 else fakes.demonstrations()
    encoder = replace(ENCODER, cameras=cameras)
    config = fakes.pretrain_config(
        objective=objective, encoder=encoder, augment=augment, similarity=SimilarityConfig(quantile=0.3, pairs=4000)
    )
    return Trainer(data, config)


def see(made: Trainer, image: Tensor, rows: int, part: slice | None = None, seed: int = 0) -> Tensor:
    """(P, M, R, V, 3, crop, crop) views of rows that show the same image everywhere."""
    M, R = 1 + made.objective.config.companions, made.objective.config.views
    own = part or slice(0, rows)
    count = len(range(*own.indices(rows)))
    images = {camera: image.expand(count * M, SIZE, SIZE, 3) for camera in made.config.encoder.cameras}
    pixels = made._views(images, own, (rows, M, R), torch.Generator().manual_seed(seed))
    assert pixels.shape == (count * M * R, len(images), 3, CROP, CROP)
    return pixels.view(count, M, R, *pixels.shape[1:])


def coordinates() -> Tensor:
    """An image whose pixels say where they are: (row, column, 0)."""
    at = torch.arange(SIZE, dtype=torch.uint8)
    return torch.stack([at[:, None].expand(SIZE, SIZE), at.expand(SIZE, SIZE), torch.zeros(SIZE, SIZE)], -1).byte()


def offsets(pixels: Tensor) -> Tensor:
    """(P, M, R, V, 2) top left corners of the crops, of views of :func:`coordinates`."""
    steps = torch.arange(CROP)
    assert torch.equal(pixels[..., 0, :, :] - pixels[..., 0, :1, :1], steps[:, None].expand_as(pixels[..., 0, :, :]))
    assert torch.equal(pixels[..., 1, :, :] - pixels[..., 1, :1, :1], steps.expand_as(pixels[..., 1, :, :]))
    return pixels[..., :2, 0, 0]


def all_differ(views: Tensor) -> bool:
    """Whether no two of the first dimension are equal."""
    flat = views.flatten(1)
    return len(flat.unique(dim=0)) == len(flat)


@pytest.mark.parametrize("case", VIEWED)
def test_crops_of_a_row(case: str) -> None:
    made = viewer(case, PLAIN)
    objective, rows = made.objective, 200
    corners = offsets(see(made, coordinates(), rows))[:, :, :, 0]  # (B, M, R, 2)
    assert (corners.amin(dim=(0, 1, 2)) == 0).all()
    assert (corners.amax(dim=(0, 1, 2)) == SIZE - CROP).all()
    _, M, R = corners.shape[:3]
    by_chance = 1 / (SIZE - CROP + 1) ** 2
    for m in range(1, M):
        same = (corners[:, 0] == corners[:, m]).all(dim=-1).double().mean()
        assert same == 1 if objective.config.together else same < 5 * by_chance, m
    for r in range(1, R):
        assert (corners[:, :, 0] == corners[:, :, r]).all(dim=-1).double().mean() < 5 * by_chance
    # Rows have crops of their own: nearly all of the 169 corners occur.
    assert len(corners[:, 0, 0].unique(dim=0)) > 90


@pytest.mark.parametrize("case", VIEWED)
def test_colours_and_noise_of_a_row(case: str) -> None:
    made = viewer(case, COLORFUL)
    grey = torch.full((SIZE, SIZE, 3), 90, dtype=torch.uint8)
    grey[..., 0] = 200
    views = see(made, grey, 12)
    for row in views:
        for r in range(views.shape[2]):
            if made.objective.config.together:
                assert (row[:, r] == row[:1, r]).all()
            else:
                assert all_differ(row[:, r])
        for m in range(views.shape[1]):
            assert all_differ(row[m])
    assert all_differ(views[:, 0, 0])


@pytest.mark.parametrize("case", VIEWED)
def test_part_of_a_batch_gets_the_views_that_it_gets_in_the_batch(case: str) -> None:
    made = viewer(case, COLORFUL)
    image = torch.randint(0, 256, (SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = see(made, image, 11)
    parts = [see(made, image, 11, part) for part in (slice(0, 4), slice(4, 5), slice(5, 11))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-3)  # products of other sizes round otherwise
    assert not torch.allclose(see(made, image, 11, slice(0, 4), seed=1), whole[:4], rtol=0, atol=1.0)


@pytest.mark.parametrize("case", ["dynamo", "both", "class+byol"])
def test_each_camera_of_a_row_is_seen_in_its_own_view(case: str) -> None:
    made = viewer(case, PLAIN, ("top", "wrist"))
    corners = offsets(see(made, coordinates(), 200))  # (B, M, R, V, 2)
    between = (corners[..., 0, :] == corners[..., 1, :]).all(dim=-1).double().mean()
    assert between < 5 / (SIZE - CROP + 1) ** 2
    if made.objective.config.together:
        assert (corners == corners[:, :1]).all()


def test_every_image_lands_in_its_place() -> None:
    # Rows, timesteps and views are folded into one dimension: each is to be found where the loss looks for it.
    made = viewer("both", PLAIN)
    B, M, R = 6, 1 + made.objective.config.companions, made.objective.config.views
    values = torch.arange(B * M, dtype=torch.uint8)
    images = {"top": values[:, None, None, None].expand(B * M, SIZE, SIZE, 3)}
    pixels = made._views(images, slice(0, B), (B, M, R), torch.Generator().manual_seed(0))
    found = pixels.view(B, M, R, -1)
    assert (found == values.view(B, M, 1, 1)).all()


def test_a_row_alone_is_drawn_as_before() -> None:
    # One image a row, one view: the draws of the published trainings.
    made = viewer("class", COLORFUL)
    images = {"top": torch.from_numpy(fakes.demonstrations().images["top"][:9])}
    found = made._views(images, slice(0, 9), (9, 1, 1), torch.Generator().manual_seed(3))
    config = made.config
    expected = random_views(
        images, config.encoder, config.augment, torch.Generator().manual_seed(3), Part(slice(0, 9), 9)
    )
    assert torch.equal(found, expected)
