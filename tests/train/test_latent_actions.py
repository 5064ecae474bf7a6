from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.types import Demonstrations
from classact.errors import CheckpointError, ConfigError, DataError, TrainingInterrupted
from classact.models.latent_actions import LatentActionConfig, LatentActionModel
from classact.models.latent_actions.model import Dynamics, as_inputs, transitions
from classact.models.latent_actions.networks import ForwardTransformer
from classact.models.latent_actions.quantize import DECAY, EPSILON, Quantizer
from classact.train.config import LatentActionTrainingConfig
from classact.train.latent_actions import LatentActionTraining
from classact.utils.storage import read_jsonl

LENGTHS = (20, 3, 30, 15)
MODEL = LatentActionConfig(latent_dim=3, width=0.0625)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def driven(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> Demonstrations:
    """A point in four dimensions that two actions push: o_{t+1} = 0.7 o_t + B a_t."""
    rng = np.random.default_rng(seed)
    push = np.random.default_rng(1).normal(size=(2, 4))
    seen, done = [], []
    for length in lengths:
        o = rng.normal(size=4)
        for _ in range(length):
            a = rng.uniform(-1, 1, 2)
            seen.append(o)
            done.append(a)
            o = 0.7 * o + a @ push
    ends = np.cumsum(lengths, dtype=np.int64)
    return Demonstrations("driven", ends, np.array(done, np.float32), np.array(seen, np.float32))


def settings(**changes: Any) -> LatentActionTrainingConfig:
    standard: dict[str, Any] = {"model": MODEL, "updates": 8, "decoder_updates": 4, "batch_size": 16}
    standard |= {"log_every": 1, "checkpoint_every": 2, "warmup": 0.1}
    return LatentActionTrainingConfig(**(standard | changes))


def training(folder: Path | None = None, data: Demonstrations | None = None, **changes: Any) -> LatentActionTraining:
    return LatentActionTraining(data or driven().only_labelled([0, 1]), settings(**changes), folder)


def states(made: LatentActionTraining) -> dict[str, torch.Tensor]:
    return {**made.dynamics.state_dict(), **{f"decoder.{k}": v for k, v in made.decoder.state_dict().items()}}


# -- what is learned ---------------------------------------------------------------------------------------------------


def test_changes_are_what_networks_see_and_predict(tmp_path: Path) -> None:
    """A point that hardly moves within a wide range: of what it moves by, few updates explain most."""
    data = driven((30,) * 8)
    far = np.random.default_rng(2).normal(size=(8, 4)).repeat(30, 0) * 300  # each episode is elsewhere
    data = replace(data, proprioception=(data.proprioception + far).astype(np.float32))
    told: dict[bool, float] = {}
    for changes in (False, True):
        made = training(
            data=data.only_labelled(range(4)),
            model=replace(MODEL, changes=changes),
            updates=150,
            batch_size=64,
            learning_rate=3e-3,
        )
        model = made.fit()
        rows = np.setdiff1d(transitions(data.episode_ends), np.arange(120))
        decoded = model.decoder.decode(model.infer(data))[rows]
        told[changes] = float(((decoded - data.actions[rows]) ** 2).mean() / data.actions[rows].var())
    assert told[True] < 0.5 < 0.9 < told[False]
    dynamics, seen = model.dynamics, torch.from_numpy(model.observations(data))[:6].reshape(2, 3, 4)
    assert dynamics.change is not None
    assert_allclose(dynamics.seen(seen)[:, 2] * dynamics.change, seen[:, 2] - seen[:, 1], atol=1e-5)
    assert_array_equal(dynamics.seen(seen)[:, 1], seen[:, 1])
    rows = transitions(data.episode_ends)
    every = torch.from_numpy(model.observations(data))
    assert 0.5 < float(dynamics.error(every[rows], every[rows + 1])) < 2  # where it was is one standard deviation off
    model.save(tmp_path / "model")
    assert_array_equal(LatentActionModel.load(tmp_path / "model").infer(data), model.infer(data))
    assert Dynamics(LatentActionConfig("cnn", "top", changes=True), 0).change is None  # images are predicted so anyway


def test_few_labels_tell_what_latent_actions_mean() -> None:
    data = driven((40,) * 30)
    model = training(
        data=data.only_labelled([0, 1]), updates=600, batch_size=64, learning_rate=2e-3, log_every=200, beta=1.0
    ).fit()
    rows = np.setdiff1d(transitions(data.episode_ends), np.arange(80))  # of demonstrations without labels
    decoded = model.decoder.decode(model.infer(data))[rows]
    assert ((decoded - data.actions[rows]) ** 2).mean() < 0.1 * data.actions[rows].var()
    shifted = data.actions[rows - 1]  # a_t takes o_t to o_{t+1}, not o_{t-1} to o_t
    assert ((decoded - shifted) ** 2).mean() > data.actions[rows].var()


def test_losses_are_those_of_the_paper() -> None:
    """Its loss written out, for one batch: ||o^ - o||^2 of all, beta ||a^ - a||^2 of the labelled, none of their own
    reconstruction."""
    made = training(beta=0.5)
    rows = next(iter(made.batches(0)))
    data = made.demonstrations
    numbers = (data.proprioception - data.proprioception.mean(0)) / data.proprioception.std(0)
    starts = np.concatenate([[0], data.episode_ends[:-1]])
    first = starts[np.searchsorted(data.episode_ends, np.arange(data.num_steps), side="right")]

    def around(steps: Any) -> torch.Tensor:
        before = np.maximum(steps - 1, first[steps])
        return torch.from_numpy(np.stack([numbers[before], numbers[steps], numbers[steps + 1]], axis=1))

    def latent(inputs: torch.Tensor) -> torch.Tensor:
        return made.dynamics.inverse.layers(inputs.flatten(1))

    everyone, own = around(rows[:, 0]), around(rows[:, 1])
    z = latent(everyone)
    predicted = made.dynamics.forward_dynamics.layers(torch.cat([everyone[:, :2].flatten(1), z], dim=1))
    reconstruction = (predicted - everyone[:, 2]).square().mean()
    low, high = data.actions[:23].min(0), data.actions[:23].max(0)  # of the labelled demonstrations
    scaled = torch.from_numpy((data.actions[rows[:, 1]] - low) / (high - low) * 2 - 1)
    action = (torch.tanh(made.decoder.layers(latent(own))) - scaled).square().mean()
    stats = made.train_step(rows)
    assert_allclose(stats["reconstruction"], reconstruction.item(), rtol=1e-5)
    assert_allclose(stats["action"], action.item(), rtol=1e-5)
    assert_allclose(stats["loss"], reconstruction.item() + 0.5 * action.item(), rtol=1e-5)
    second = made.train_step(rows)
    assert second["loss"] == second["reconstruction"]  # actions teach at every second update only
    assert second["action"] > 0  # but are logged


@pytest.mark.parametrize(
    ("supervision", "inverse", "forward", "decoder"),
    [("joint", True, False, True), ("alone", True, False, True), ("after", False, False, True)],
)
def test_whom_labels_teach(supervision: str, inverse: bool, forward: bool, decoder: bool) -> None:
    made = training(supervision=supervision)
    made.step = 8 if supervision == "after" else 0
    rows = next(iter(made.batches(0)))
    if supervision != "after":  # leave the reconstruction out
        made._reconstruction = lambda *_: torch.zeros(())  # type: ignore[method-assign]
    made.train_step(rows)
    for network, taught in (
        (made.dynamics.inverse, inverse),
        (made.dynamics.forward_dynamics, forward),
        (made.decoder, decoder),
    ):
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters()) == taught
    assert made.dynamics.training == (supervision != "after")


def test_labels_of_others_are_not_seen() -> None:
    data = driven()
    other = replace(data, actions=np.where(np.arange(68)[:, None] < 23, data.actions, np.float32(9)))
    one, two = (training(data=d.only_labelled([0, 1])) for d in (data, other))
    one.fit()
    two.fit()
    assert all(torch.equal(a, b) for a, b in zip(states(one).values(), states(two).values(), strict=True))


# -- networks ----------------------------------------------------------------------------------------------------------


def test_a_causal_mask_is_causal() -> None:
    torch.manual_seed(0)
    network = ForwardTransformer(replace(MODEL, network="transformer", context=5), 4).eval()
    context, z = torch.randn(2, 5, 4), torch.randn(2, 3)
    before = network.each(context, z)
    changed = context.clone()
    changed[:, 3] += 1
    after = network.each(changed, z)
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] - after[:, 3:]).abs().amax(dim=(0, 2)).min() > 1e-4
    assert (network.each(context, z + 1) - before).abs().amin(dim=(0, 2)).max() > 1e-6


@pytest.mark.parametrize("network", ["mlp", "transformer", "cnn"])
def test_networks_depend_on_all_that_they_see(network: Any) -> None:
    config = replace(MODEL, network=network, camera="top" if network == "cnn" else None)
    dynamics = Dynamics(config, 4).eval()
    shape = (3, 64, 64) if network == "cnn" else (4,)
    seen = torch.rand(2, 3, *shape, requires_grad=True)
    z = dynamics.infer(seen)
    assert z.shape == (2, 3)
    (found,) = torch.autograd.grad(z[0].sum(), seen, retain_graph=True)
    assert (found[0].flatten(1).abs().amax(1) > 0).all()
    assert (found[1] == 0).all()
    predicted = dynamics.predict(seen[:, :2], z)
    assert predicted.shape == (2, *shape)
    (found,) = torch.autograd.grad(predicted[0].sum(), z)
    assert (found[0] != 0).all()


def test_a_codebook_follows_its_vectors() -> None:
    """Against the equations of appendix A.1 of VQ-VAE, written out."""
    torch.manual_seed(0)
    quantizer = Quantizer(5, 3)
    before = quantizer.codebook.clone()
    vectors = torch.randn(40, 3, requires_grad=True)
    entries, commitment, numbers = quantizer(vectors)
    squares = (vectors.detach().numpy()[:, None] - before.numpy()[None]) ** 2
    assert_array_equal(numbers.numpy(), squares.sum(2).argmin(1))
    assert_allclose(entries.detach().numpy(), before.numpy()[numbers], rtol=1e-5, atol=1e-6)
    assert_allclose(commitment.item(), squares.sum(2).min(1).sum() / 120, rtol=1e-5)
    entries.sum().backward()
    assert_array_equal(vectors.grad, np.ones((40, 3)))  # straight through
    quantizer.follow(*quantizer.tally(vectors, numbers))
    counts, sums = np.ones(5), before.numpy().astype(np.float64)
    for k in range(5):
        chosen = vectors.detach().numpy()[numbers.numpy() == k]
        counts[k] = DECAY * counts[k] + (1 - DECAY) * len(chosen)
        sums[k] = DECAY * sums[k] + (1 - DECAY) * chosen.sum(0)
    smoothed = (counts + EPSILON) / (counts.sum() + 5 * EPSILON) * counts.sum()
    assert_allclose(quantizer.codebook.numpy(), sums / smoothed[:, None], rtol=1e-5, atol=1e-6)


# -- latent actions of demonstrations ----------------------------------------------------------------------------------


def test_an_episodes_last_step_leads_nowhere() -> None:
    model = training().fit()
    data = driven()
    z = model.infer(data)
    assert_array_equal(z[[19, 22, 52, 67]], z[[18, 21, 51, 66]])
    seen = model.observations(data)
    inputs = torch.from_numpy(np.stack([seen[20], seen[20], seen[21]])[None])  # the first of an episode is repeated
    assert_allclose(z[20], model.dynamics.infer(inputs)[0].detach().numpy(), rtol=1e-4, atol=1e-6)
    relabelled = model.relabel(data)
    assert relabelled.schema.actions is None
    assert_array_equal(relabelled.actions, z)
    with pytest.raises(DataError, match=r"episode 1 has one step.*leave it out \(--episodes\)"):
        model.infer(driven((4, 1)))


def test_dropout_is_off_where_latent_actions_are_inferred() -> None:
    made = training(model=replace(MODEL, network="transformer"), updates=1)
    model = made.fit()
    model.dynamics.train()
    data = driven()
    assert_array_equal(model.infer(data), model.infer(data))


def test_a_model_is_a_folder(tmp_path: Path) -> None:
    made = training(model=replace(MODEL, codes=4))
    model = made.fit()
    model.save(tmp_path / "model")
    read = LatentActionModel.load(tmp_path / "model")
    data = driven()
    assert_array_equal(read.infer(data), model.infer(data))
    assert_array_equal(read.decoder.decode(read.infer(data)), model.decoder.decode(model.infer(data)))
    assert read.training == {"updates": 8, "data": made.demonstrations.fingerprint()}
    weights = tmp_path / "model/decoder/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"decoder/model\.safetensors"):
        LatentActionModel.load(tmp_path / "model")


def test_images_are_seen_at_64_pixels(tmp_path: Path) -> None:
    data = fakes.demonstrations(lengths=(12, 9)).only_labelled([0])
    model = training(data=data, model=replace(MODEL, network="cnn", camera="top"), updates=2).fit()
    seen = as_inputs(torch.from_numpy(model.observations(data)))
    assert seen.shape == (21, 3, 64, 64)
    assert float(seen.max()) <= 1
    model.save(tmp_path / "model")
    assert_array_equal(LatentActionModel.load(tmp_path / "model").infer(data), model.infer(data))


# -- the engine's promises ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [0, 4])
def test_an_interrupted_training_goes_on(codes: int, tmp_path: Path) -> None:
    model = replace(MODEL, codes=codes)
    whole = training(model=model, supervision="after")
    whole.fit()
    first = training(tmp_path, model=model, supervision="after")

    def stop(done: int, *_: object) -> None:
        if done == 5:
            raise TrainingInterrupted("now")

    with pytest.raises(TrainingInterrupted):
        first.fit(stop)
    second = training(tmp_path, model=model, supervision="after")
    second.fit()
    assert second.step == 12
    assert all(torch.equal(value, states(second)[name]) for name, value in states(whole).items())
    assert [row["step"] for row in read_jsonl(tmp_path / "train.jsonl")] == list(range(1, 13))
    with pytest.raises(CheckpointError, match=r"made with config\.beta = 1\.0, now it is 2\.0"):
        training(tmp_path, model=model, supervision="after", beta=2.0).fit()


@pytest.mark.parametrize("codes", [0, 4])
def test_two_ranks_have_the_gradient_of_one(codes: int) -> None:
    """Each rank's share of a batch, and their sum: what :meth:`Ranks.sum_` makes of them."""
    model = replace(MODEL, codes=codes)
    one = training(model=model)
    rows = next(iter(one.batches(0)))
    one.train_step(rows)
    parts = [training(model=model) for _ in range(2)]
    for made, part in zip(parts, (slice(0, 8), slice(8, 16)), strict=True):
        made.optimizer.zero_grad(set_to_none=True)
        order = rows[np.argsort(rows[:, 0], kind="stable")]
        made.gradients(order, part, {}, torch.Generator().manual_seed(0))
    norms = one.clip()  # of the clipped gradient
    assert float(norms) <= 2
    fresh = training(model=model)
    fresh.optimizer.zero_grad(set_to_none=True)
    fresh.gradients(order, slice(0, 16), {}, torch.Generator().manual_seed(0))
    for whole, left, right in zip(fresh.trained, parts[0].trained, parts[1].trained, strict=True):
        assert whole.grad is not None
        assert left.grad is not None
        assert right.grad is not None
        assert_allclose(left.grad + right.grad, whole.grad, rtol=1e-3, atol=1e-6)


# -- what is refused, or said ------------------------------------------------------------------------------------------


def test_refused() -> None:
    data = driven()
    with pytest.raises(ConfigError, match=r"none of 4 demonstrations carries actions.*a few are enough"):
        training(data=data.only_labelled([]))
    with pytest.raises(ConfigError, match=r"the 1 labelled demonstrations have one step each"):
        training(data=driven((5, 1, 5)).only_labelled([1]))
    with pytest.raises(ConfigError, match=r"has no images of camera 'front', there are none"):
        training(model=replace(MODEL, network="cnn", camera="front"))
    with pytest.raises(ConfigError, match=r"network 'mlp' observes numbers, got camera 'top'"):
        LatentActionConfig(camera="top")
    with pytest.raises(ConfigError, match=r"expected codes of 0 .continuous. or at least 2"):
        LatentActionConfig(codes=1)
    model = training().fit()
    wider = replace(data, proprioception=np.concatenate([data.proprioception] * 2, axis=1), schema=type(data.schema)())
    with pytest.raises(DataError, match=r"'proprioception' of size 8, the latent action model was trained on 4"):
        model.infer(wider)


def test_a_collapse_is_said(caplog: pytest.LogCaptureFixture) -> None:
    made = training(updates=20, learning_rate=1e-9, decoder_lr=1e-9, supervision="after", decoder_updates=1)
    with torch.no_grad():
        for parameter in list(made.dynamics.inverse.parameters())[-2:]:
            parameter.zero_()
    with caplog.at_level(logging.WARNING):
        made.fit()
    (said,) = [record.getMessage() for record in caplog.records if "collapsed" in record.getMessage()]
    assert "at update 6 of 20: predictions are as good with those of other transitions" in said


def test_latents_in_use_are_not_called_collapsed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        training(updates=100, batch_size=64, learning_rate=2e-3, data=driven((40,) * 8).only_labelled([0])).fit()
    assert not [record for record in caplog.records if "collapsed" in record.getMessage()]


def test_demonstrations_keep_their_labels() -> None:
    data = driven().only_labelled([1, 2])
    assert data.labelled is not None
    assert data.labelled.tolist() == [False, True, True, False]
    assert data.labelled_actions().shape == (33, 2)
    assert (data.actions[:20] == 0).all()
    assert (data.actions[53:] == 0).all()
    part = data.subset([2, 3])
    assert part.labelled is not None
    assert part.labelled.tolist() == [True, False]
    assert data.only_labelled([0, 1]).labelled.tolist() == [False, True, False, False]  # type: ignore[union-attr]
    assert data.fingerprint() != driven().fingerprint()
    with pytest.raises(DataError, match=r"labelled of shape \(4,\) and dtype bool"):
        replace(data, labelled=np.ones(3, bool))
