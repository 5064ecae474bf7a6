from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import fakes
from classact.data.types import Demonstrations, Observation
from classact.data.windows import history_indices, window_indices
from classact.errors import CheckpointError, ClassactError, ConfigError, DataError, TrainingInterrupted
from classact.models.average import ema_decay
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.heads import DiffusionConfig, FlowConfig, HeadConfig, MLPConfig, ResidualConfig, UNetConfig
from classact.policies.parametric import ParametricPolicy
from classact.train import checkpoints, engine
from classact.train.augment import Part, augment
from classact.train.checkpoints import list_checkpoints
from classact.train.config import TABLE_9, AdamWConfig, AugmentConfig, FinetuneConfig
from classact.train.engine import DIVERGED, step_generator
from classact.train.head import VIEW_STREAM, FineTuner, load_encoder
from classact.train.loader import describe_bytes
from classact.train.optim import learning_rate
from classact.train.representation import Trainer, random_views
from classact.utils.ranks import Ranks
from classact.utils.storage import read_jsonl

TINY = UNetConfig(widths=(8, 16), kernel_size=3, groups=4, step_dim=8)
DIFFUSION, MLP = DiffusionConfig(TINY), MLPConfig(TINY)
ENCODER = EncoderConfig(width=0.25, image_size=32, crop_size=28)
RESIDUAL: dict[str, Any] = {"network": "residual", "residual": ResidualConfig(64, 2, 16)}
CPU = torch.device("cpu")
FOUR = 4 * 16 / sum(fakes.STEPS)
"""Epochs of four steps."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(**changes: Any) -> FinetuneConfig:
    standard: dict[str, Any] = {
        "head": DIFFUSION,
        "encoder": ENCODER,
        "optimizer": AdamWConfig(head_lr=2e-3, encoder_lr=2e-4, warmup_steps=2),
        "epochs": FOUR,
        "batch_size": 16,
        "precision": "float32",
        "log_every": 1,
        "checkpoint_every": 2,
    }
    return FinetuneConfig(**(standard | changes))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tuner(folder: Path | None = None, start: Path | None = None, **changes: Any) -> FineTuner:
    return FineTuner(fakes.demonstrations(), config(**changes), folder, encoder_folder=start)


def same(one: FineTuner, two: FineTuner) -> bool:
    names = ("encoder", "head", "average_encoder", "average_head")
    return all(fakes.equal(getattr(one, name), getattr(two, name)) for name in names)


def fitted(*args: Any, **changes: Any) -> FineTuner:
    made = tuner(*args, **changes)
    made.fit()
    return made


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: checkpoints of four steps, and the averaged encoder."""
    folder = tmp_path_factory.mktemp("pretrained")
    Trainer(fakes.demonstrations(), fakes.pretrain_config(epochs=FOUR), folder).fit().save_pretrained(
        folder / "encoder"
    )
    return folder


# Paper values


def test_the_defaults_are_the_papers() -> None:
    paper = FinetuneConfig()
    assert (paper.batch_size, paper.horizon, paper.history, paper.chunk_length) == (64, 16, 1, 12)
    assert paper.optimizer == AdamWConfig(1e-4, 1e-5, (0.9, 0.99), 1e-6, 500, 0.5, 0.75)
    assert paper.head == DiffusionConfig(
        UNetConfig((256, 512, 1024), 5, 8, 256), "unet", scheduler="ddim", training_steps=16, inference_steps=16
    )
    assert paper.augment == AugmentConfig()
    assert (paper.epochs, paper.evaluations) == (TABLE_9["pusht"][1], 10)
    assert paper.intermediates(1000) == list(range(100, 1001, 100))
    assert paper.intermediates(3) == [1, 2, 3]
    assert config(evaluations=0).intermediates(10) == []
    assert paper.steps(25_650) == math.ceil(25_650 * 250 / 64)


def test_rates_follow_warm_up_and_cosine_and_the_encoder_is_slower(tmp_path: Path) -> None:
    made = fitted(tmp_path)
    rows = read_jsonl(tmp_path / "train.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        factor = learning_rate(made.config.optimizer.schedule(), row["step"] - 1, 4)
        assert (row["lr"], row["encoder_lr"]) == (2e-3 * factor, 2e-4 * factor)
        assert (row["steps"], row["images_per_second"] > 0, np.isfinite(row["loss"])) == (4, True, True)
    rates = {id(p): group["lr"] for group in made.optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in made.head.parameters()} == {rows[-1]["lr"]}
    assert {rates[id(p)] for p in made.encoder.parameters()} == {rows[-1]["encoder_lr"]}
    decay = {id(p): group["weight_decay"] for group in made.optimizer.param_groups for p in group["params"]}
    assert all(decay[id(p)] == (1e-6 if p.ndim > 1 else 0) for p in made.head.parameters())


@pytest.mark.parametrize("head", [DIFFUSION, MLP], ids=lambda head: head.name)
def test_one_step_word_by_word(head: HeadConfig) -> None:
    data = fakes.demonstrations()
    made, twin = tuner(head=head), tuner(head=head)
    rows = np.array([3, 29, 60, 119, 4, 5])
    stats = made.train_step(rows)
    rows = np.sort(rows)
    generator = step_generator(0, 0, torch.device("cpu"))
    pixels = augment(torch.from_numpy(data.images["top"][rows]), 28, AugmentConfig(), generator)
    scaled = {}
    for name, values in (("actions", data.actions), ("proprioception", data.proprioception)):
        low, high = values.min(0), values.max(0)
        scaled[name] = torch.from_numpy((values - low) / (high - low) * 2 - 1)
    features = torch.cat([twin.encoder(twin.encoder.normalize(pixels)[:, None]), scaled["proprioception"][rows]], dim=1)
    chunks = scaled["actions"][window_indices(data.episode_ends, 16)[rows]]
    loss = twin.head.loss(features, chunks, generator)
    loss.backward()  # type: ignore[no-untyped-call]
    assert_allclose(stats["loss"], loss.item(), rtol=1e-5)
    parameters = [*twin.encoder.parameters(), *twin.head.parameters()]
    norm = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
    assert_allclose(stats["grad_norm"], norm, rtol=1e-4)
    # Clipped after backward, to 0.5; Adam's first step is the rate times the gradient's sign.
    kernel, grad = "network.out.1.weight", dict(twin.head.named_parameters())["network.out.1.weight"].grad
    assert grad is not None
    clipped = grad * min(1.0, 0.5 / float(norm))
    start, after = twin.head.state_dict()[kernel], made.head.state_dict()[kernel]
    rate = 2e-3 * learning_rate(made.config.optimizer.schedule(), 0, 4)
    assert_allclose(after, start - rate * clipped / (clipped.abs() + 1e-8), atol=1e-6)
    average = made.average_head.state_dict()[kernel]
    assert_allclose(average, torch.lerp(after, start, ema_decay(1, 0.75)), atol=1e-7)


# Randomness and resuming


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    before, legacy = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = fitted(), fitted(), fitted(seed=1)
    assert same(first, again)
    assert not fakes.equal(first.head, other.head)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_array_equal(np.random.get_state()[1], legacy)  # noqa: NPY002


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"head": MLP, "history": 2, "standardize": True},
        {"frozen": True},
        {"frozen": True, "augment": None},
        {"head": FlowConfig(**RESIDUAL), "frozen": True, "views": 2, "standardize": True, "noise": 1.0, "samples": 2},
    ],
    ids=["diffusion", "mlp", "frozen", "fixed-features", "flow-on-kept-views"],
)
def test_two_steps_then_resume_to_four_equals_four_straight(tmp_path: Path, changes: dict[str, Any]) -> None:
    straight = fitted(tmp_path / "a", **changes)
    with pytest.raises(TrainingInterrupted, match=r"stopped at step 2 of 4; the state is saved in .*b"):
        tuner(tmp_path / "b", **changes).fit(fakes.stop_after(2))
    resumed = fitted(tmp_path / "b", **changes)
    assert resumed.step == straight.step == 4
    assert same(resumed, straight)
    files = [tmp_path / run / "checkpoints" / "step-00000004" / checkpoints.STATE for run in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert [row["step"] for row in read_jsonl(tmp_path / "b" / "train.jsonl")] == [1, 2, 3, 4]
    calls: list[Any] = []
    done = tuner(tmp_path / "b", **changes)
    done.fit(lambda *a: calls.append(a))
    assert same(done, straight)
    assert calls == []


def test_intermediates_see_the_weights_of_their_step(tmp_path: Path) -> None:
    seen: list[tuple[int, list[int]]] = []

    def intermediate(run: FineTuner) -> None:
        saved = [step for step, _ in list_checkpoints(tmp_path / "checkpoints")]
        seen.append((run.step, saved))
        assert run.policy().training["step"] == run.step

    options = {"evaluations": 2, "checkpoint_every": 3}
    tuner(tmp_path, **options).fit(intermediate=intermediate)
    assert seen == [(2, [2]), (4, [3, 4])]  # after the checkpoint
    seen.clear()
    tuner(tmp_path, **options).fit(intermediate=intermediate)
    assert seen == [(4, [3, 4])]  # it may have been killed in it
    with pytest.raises(TrainingInterrupted):
        tuner(tmp_path / "b", **options).fit(fakes.stop_after(2), intermediate)
    seen.clear()
    tuner(tmp_path / "b", **options).fit(intermediate=intermediate)
    assert [step for step, _ in seen] == [2, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, r"config.seed = 0, now it is 7"),
        ({"head": MLP}, r"config.head.beta_schedule = 'squaredcos_cap_v2', now it is None"),
        ({"frozen": True}, r"config.frozen = False, now it is True"),
        ({"augment": None}, r"config.augment = .*, now it is None"),
        ({"history": 2}, r"config.history = 1, now it is 2"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    fitted(tmp_path)
    with pytest.raises(CheckpointError, match=rf"step-00000004 was made with .*{message}.*--out"):
        tuner(tmp_path, **changes).fit()


def test_another_encoder_and_other_data_are_refused(tmp_path: Path, pretrained: Path) -> None:
    fitted(tmp_path, pretrained / "encoder")
    with pytest.raises(CheckpointError, match=r"was made with encoder_weights = "):
        tuner(tmp_path, pretrained / "checkpoints", weights="last").fit()
    with pytest.raises(CheckpointError, match=r"was made with data = "):
        FineTuner(fakes.demonstrations(seed=1), config(), tmp_path, encoder_folder=pretrained / "encoder").fit()
    fitted(tmp_path, pretrained / "encoder", log_every=2, checkpoint_every=1, evaluations=3, chunk_length=4)


# Where the encoder comes from, and what happens to it


def test_an_encoder_from_every_kind_of_folder(pretrained: Path) -> None:
    average = ImageEncoder.from_pretrained(pretrained / "encoder")
    newest = pretrained / "checkpoints" / "step-00000004"
    for path in (pretrained / "encoder", pretrained / "checkpoints", newest):
        assert fakes.equal(load_encoder(path), average)
    last, older = load_encoder(newest, "last"), load_encoder(newest.with_name("step-00000002"), "last")
    assert fakes.equal(load_encoder(pretrained / "checkpoints", "last"), last)
    assert not fakes.equal(last, average)
    assert not fakes.equal(last, older)
    for path in (pretrained / "encoder", pretrained / "checkpoints" / "step-00000009"):
        with pytest.raises(CheckpointError, match=r"no folder of training checkpoints.*start from weights 'average'"):
            load_encoder(path, "last")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_encoder(pretrained / "nothing" / "here" / "x")


def test_a_pretrained_encoder_brings_its_architecture(pretrained: Path) -> None:
    made = tuner(None, pretrained / "encoder", encoder=EncoderConfig())
    assert made.encoder.config == ENCODER
    assert fakes.equal(made.encoder, ImageEncoder.from_pretrained(pretrained / "encoder"))
    assert fakes.equal(made.average_encoder, made.encoder)
    assert made.identity()["config"]["encoder"]["width"] == 0.25
    scratch = tuner()
    assert fakes.equal(scratch.encoder, ImageEncoder(ENCODER, seed=0))
    labels = [m.policy().training for m in (made, scratch, tuner(frozen=True, augment=None))]
    assert [{key: found[key] for key in ("head", "training", "augmentation")} for found in labels] == [
        {"head": "diffusion", "training": "fine-tuned", "augmentation": "crop, noise"},
        {"head": "diffusion", "training": "from scratch", "augmentation": "crop, noise"},
        {"head": "diffusion", "training": "frozen", "augmentation": "none"},
    ]
    other = tuner(augment=AugmentConfig(color="hsv", noise_std=0), head=MLP).policy().training
    assert (other["head"], other["augmentation"]) == ("mlp", "crop, hsv")


def test_fine_tuning_changes_the_encoder_and_freezing_does_not(pretrained: Path) -> None:
    start = ImageEncoder.from_pretrained(pretrained / "encoder")
    tuned, frozen = (fitted(None, pretrained / "encoder", frozen=f) for f in (False, True))
    assert not fakes.equal(tuned.encoder, start)
    assert not fakes.equal(tuned.average_encoder, start)
    assert fakes.equal(frozen.encoder, start)
    assert fakes.equal(frozen.average_encoder, start)
    assert not fakes.equal(frozen.head, tuner(None, pretrained / "encoder").head)


def head_input(made: FineTuner, rows: np.ndarray, seed: int = 0) -> torch.Tensor:
    """(B, C) features that the head is trained on when a batch is ``rows``."""
    seen: list[torch.Tensor] = []
    losses = made.head.losses

    def spy(features: torch.Tensor, *args: Any) -> torch.Tensor:
        seen.append(features)
        return losses(features, *args)

    images = {} if made.loader is None else made.loader.take(made.timesteps(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.head, "losses", spy)
        made.gradients(rows, slice(0, len(rows)), images, torch.Generator().manual_seed(seed))
    (features,) = seen
    return features


def test_fixed_features_are_those_of_run_time() -> None:
    data = fakes.demonstrations()
    fixed, centre = (tuner(augment=None, frozen=frozen) for frozen in (True, False))
    rows = np.array([0, 7, 119])
    got = head_input(fixed, rows)
    assert fixed.loader is None  # no image is read again
    seen = [Observation({"top": data.images["top"][r]}, data.proprioception[r]) for r in rows]
    assert_allclose(got, fixed.policy().features(seen), atol=1e-6)
    assert_allclose(head_input(centre, rows).detach(), got, atol=1e-5)
    assert head_input(centre, rows).requires_grad
    assert not got.requires_grad
    assert not head_input(tuner(frozen=True), rows).requires_grad


def test_progress_tells_of_features_before_the_first_step() -> None:
    made, said = tuner(frozen=True, views=2), []
    made.fit(lambda *now: said.append(now))
    assert said[:2] == [(0, made.steps, "features: 50%"), (0, made.steps, "features: 100%")]
    assert [now[0] for now in said[2:]] == list(range(1, made.steps + 1))


def test_views_that_are_kept_are_those_that_would_be_streamed() -> None:
    kept, streamed = tuner(frozen=True, views=3), tuner(frozen=True)
    views = kept._all_views()
    assert views.shape == (3, 120, kept.encoder.feature_dim)
    for view in range(3):
        entropy = np.random.SeedSequence([0, VIEW_STREAM, view, 0]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(entropy >> np.uint64(1)))
        images = {"top": torch.from_numpy(streamed.images["top"])}
        pixels = random_views(images, ENCODER, AugmentConfig(), generator, Part(slice(0, 120), 120))
        assert_allclose(views[view], streamed._encoded(pixels), atol=1e-5)
    assert len({tuple(view[0].tolist()) for view in views}) == 3
    rows = np.arange(120)
    got = head_input(kept, rows)[:, :-2]
    drawn = [int((views[:, row] - got[row]).abs().sum(dim=1).argmin()) for row in rows]
    assert_allclose(got, views[drawn, rows])
    assert set(drawn) == {0, 1, 2}
    assert kept.loader is None  # no image is read again


def test_ranks_compute_views_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classact.train.head.VIEW_CHUNK", 50)
    options: dict[str, Any] = {"frozen": True, "views": 2}
    whole = tuner(**options)._all_views()
    sent: list[torch.Tensor] = []

    class Second(Ranks):
        def gather(self, tensor: torch.Tensor) -> torch.Tensor:
            sent.append(tensor)
            return torch.cat([whole[len(sent) - 1, :100], tensor])

    said: list[str] = []
    for ranks, count in ((Second(1, 2), 0), (Ranks(), 1)):
        made = FineTuner(fakes.demonstrations(), config(**options), ranks=ranks, say=said.append)
        made.prepare()
        made.prepare()
        assert len(said) == count
        assert_allclose(made._all_views(), whole, atol=1e-6)
    assert [len(own) for own in sent] == [20, 20]
    size = 4 * 2 * 120 * made.encoder.feature_dim
    assert said == [f"features of 2 x 120 images are computed once, before training ({describe_bytes(size)})"]
    tuner(frozen=True).prepare()  # fresh views at each step: nothing is kept


@pytest.mark.parametrize("options", [{"frozen": True, "views": 4}, {"frozen": True, "augment": None}, {}], ids=str)
def test_standardized_features_have_mean_0_and_deviation_1_and_so_at_run_time(options: dict[str, Any]) -> None:
    made = tuner(standardize=True, history=2, **options)
    made.prepare()
    F = made.encoder.feature_dim
    if made.count:
        scaled = made.head.standardize(head_views(made))
        assert_allclose(scaled[:, :F].mean(dim=0), np.zeros(F), atol=1e-4)
        deviation = scaled[:, :F].std(dim=0)
        assert_allclose(deviation[made.head.scale[:F] > 1e-6], 1, rtol=1e-3)
    for start in (F, 2 * F + 2):  # proprioception stays as it is
        assert_array_equal(made.head.center[start : start + 2], [0, 0])
        assert_array_equal(made.head.scale[start : start + 2], [1, 1])
    features = torch.randn(3, made.head.feature_dim, generator=torch.Generator().manual_seed(0))
    policy = made.policy()
    expected = policy.head.generate(policy.head.standardize(features), policy.head.sampling_noise(3, seeded(), CPU))
    assert torch.equal(policy.head.sample(features, seeded()), expected)
    assert not torch.equal(policy.head.standardize(features), features)


def head_views(made: FineTuner) -> torch.Tensor:
    """(V N, C) kept features as decisions whose observations are twice the same one."""
    views = made._all_views().flatten(0, 1)
    lowdim = made._lowdim.repeat(made.count, 1)
    return torch.cat([views, lowdim], dim=1).repeat(1, 2)


def test_fixed_features_are_computed_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    prepare, gradients = FineTuner.prepare, FineTuner.gradients
    monkeypatch.setattr(FineTuner, "prepare", lambda self: order.append("prepare") or prepare(self))
    monkeypatch.setattr(FineTuner, "gradients", lambda *args: order.append("step") or gradients(*args))
    made = fitted(augment=None, frozen=True)
    assert order == ["prepare", *["step"] * 4]
    made.run()  # there is nothing left to do
    assert order == ["prepare", *["step"] * 4]


def test_noise_is_on_image_features_alone_and_drawn_anew_for_each_sample() -> None:
    rows = np.arange(50)
    options: dict[str, Any] = {"frozen": True, "augment": None, "history": 2}
    plain = head_input(tuner(**options), rows)
    noisy = head_input(tuner(noise=0.1, samples=3, **options), rows).reshape(50, 3, -1)
    difference = noisy - plain[:, None]
    F = (plain.shape[1] - 4) // 2
    image = torch.cat([difference[..., :F], difference[..., F + 2 : -2]], dim=-1)
    assert 0.095 < image.std() < 0.105
    assert abs(np.corrcoef(image[:, 0].flatten(), image[:, 1].flatten())[0, 1]) < 0.05
    assert difference[..., F : F + 2].abs().max() == difference[..., -2:].abs().max() == 0  # proprioception has none


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ConfigError, match="features of 3 views are computed once only of a frozen encoder"):
        config(views=3)
    with pytest.raises(ConfigError, match=r"augment.feature_noise 0.1 is of pre-training.*Set noise instead"):
        config(augment=AugmentConfig(feature_noise=0.1))
    with pytest.raises(ConfigError, match="expected samples >= 1, got 0"):
        config(samples=0)


def test_histories_repeat_the_first_observation_of_their_episode() -> None:
    assert history_indices(np.array([3, 5]), 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 2], [3, 3, 3], [3, 3, 4]]
    assert_array_equal(history_indices(np.array([3, 5]), 1)[:, 0], np.arange(5))
    two, one = tuner(history=2, augment=None), tuner(augment=None)
    rows = np.array([0, 30, 31, 90])
    got = head_input(two, rows).detach()
    before, now = head_input(one, np.array([0, 30, 30, 89])).detach(), head_input(one, rows).detach()
    assert_allclose(got, torch.cat([before, now], dim=1), atol=1e-5)
    policy = two.policy()
    assert (policy.config.history, policy.head.feature_dim) == (2, 2 * (two.encoder.feature_dim + 2))


# Learning


def chunk_error(policy: ParametricPolicy, data: Demonstrations) -> float:
    """Mean distance in pixels of predicted from demonstrated chunks."""
    seen = [Observation({"top": i}, p) for i, p in zip(data.images["top"], data.proprioception, strict=True)]
    wanted = data.actions[window_indices(data.episode_ends, policy.config.chunk_length)]
    return float(np.linalg.norm(policy.decide(seen).chunk - wanted, axis=-1).mean())


@pytest.mark.parametrize(
    "head",
    [
        DiffusionConfig(UNetConfig((16, 32), 3, 8, 16)),
        MLP,
        DiffusionConfig(**RESIDUAL),
        MLPConfig(loss="l1", **RESIDUAL),
        FlowConfig(**RESIDUAL),
    ],
    ids=lambda head: f"{head.name}-{head.network}",
)
def test_learns_to_act_and_survives_its_folder(head: HeadConfig, tmp_path: Path) -> None:
    data = fakes.demonstrations(lengths=(40,) * 3)
    quick = AdamWConfig(head_lr=5e-3, encoder_lr=1e-3, warmup_steps=10)
    epochs = 40 if isinstance(head, MLPConfig) else 100
    options = config(head=head, optimizer=quick, epochs=epochs, batch_size=40, checkpoint_every=1000)
    made = FineTuner(data, options, tmp_path)
    untrained = chunk_error(made.policy(), data)
    policy = made.fit()
    learned = chunk_error(policy, data)
    assert learned < 0.5 * untrained, (learned, untrained)
    policy.save(tmp_path / "policy")
    loaded = ParametricPolicy.load(tmp_path / "policy")
    assert chunk_error(loaded, data) == learned
    assert (loaded.spec.name, loaded.spec.chunk_length, loaded.training["step"]) == (head.name, 12, 3 * epochs)
    json.dumps(loaded.training)


@pytest.mark.parametrize("head", [DIFFUSION, MLP], ids=lambda head: head.name)
def test_a_head_in_bfloat16_learns_as_in_float32_and_acts_in_float32(head: HeadConfig, tmp_path: Path) -> None:
    options = {"head": head, "epochs": 12, "batch_size": 40, "checkpoint_every": 1000, "frozen": True, "augment": None}
    ends, modes = {}, []
    for precision in ("float32", "bfloat16"):
        made = tuner(tmp_path / precision, head_precision=precision, **options)
        kernel, seen = made.head.network.out[1], []
        watch = kernel.register_forward_hook(lambda _, __, out: seen.append(out.dtype))  # noqa: B023
        policy = made.fit()
        watch.remove()
        modes.append(set(seen))
        losses = [row["loss"] for row in read_jsonl(tmp_path / precision / "train.jsonl")]
        ends[precision] = float(np.mean(losses[-8:]))
        assert {p.dtype for p in (*made.head.parameters(), *policy.head.parameters())} == {torch.float32}
        acting: list[torch.dtype] = []
        policy.head.network.out[1].register_forward_hook(lambda _, __, out: acting.append(out.dtype))  # noqa: B023
        data = made.demonstrations
        policy.decide([Observation({"top": data.images["top"][0]}, data.proprioception[0])])
        assert set(acting) == {torch.float32}
    assert modes == [{torch.float32}, {torch.bfloat16}]
    assert ends["bfloat16"] != ends["float32"]
    assert_allclose(ends["bfloat16"], ends["float32"], rtol=0.03)


def test_the_heads_precision_is_part_of_what_is_trained(tmp_path: Path) -> None:
    plain = tuner()
    assert not plain.head_bf16
    assert not plain.identity()["head_bfloat16"]
    chosen = tuner(head_precision="bfloat16")
    assert chosen.identity()["config"]["head_precision"] == "bfloat16"
    assert chosen.identity()["head_bfloat16"]
    assert not tuner(head_precision="auto").head_bf16  # no GPU
    with pytest.raises(TrainingInterrupted):
        tuner(tmp_path, head_precision="bfloat16").fit(fakes.stop_after(2))
    with pytest.raises(CheckpointError, match=r"was made with config.head_precision = 'bfloat16', now it is 'float32'"):
        tuner(tmp_path).fit()
    assert same(fitted(tmp_path, head_precision="bfloat16"), fitted(head_precision="bfloat16"))


def test_a_checkpoint_decides_what_auto_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_cpu_flags", lambda: "avx512_bf16")
    auto = {"precision": "auto", "head_precision": "auto"}
    with pytest.raises(TrainingInterrupted):
        tuner(tmp_path, **auto).fit(fakes.stop_after(2))
    monkeypatch.setattr(engine, "_cpu_flags", lambda: "sse2")
    named = tuner(tmp_path, precision="bfloat16", head_precision="float32")
    assert named.resume()
    with pytest.raises(CheckpointError, match=r"config.precision = 'bfloat16', now it is 'float32'"):
        tuner(tmp_path).resume()
    with pytest.raises(CheckpointError, match=r"config.head_precision = 'float32', now it is 'bfloat16'"):
        tuner(tmp_path, precision="auto", head_precision="bfloat16").resume()
    assert same(fitted(tmp_path, **auto), fitted(precision="bfloat16"))
    assert tuner(tmp_path, **auto).resume()


# Several views, chosen proprioception, instructions

TWO = replace(ENCODER, cameras=("top", "wrist"))


def rich() -> Demonstrations:
    """Two views, three proprioception keys and an instruction for each episode."""
    data = fakes.two_views(fakes.demonstrations(), language=3)
    own = np.concatenate([data.proprioception, np.cumsum(data.proprioception, axis=0)[:, :2], data.actions], axis=1)
    keys = (("place", 2), ("path", 2), ("answer", 2))
    return replace(data, proprioception=own.astype(np.float32), schema=replace(data.schema, proprioception=keys))


@pytest.mark.parametrize("history", [1, 2])
def test_the_head_sees_chosen_keys_then_the_instruction(history: int) -> None:
    data = rich()
    assert data.language is not None
    settings = config(encoder=TWO, keys=("path", "place"), augment=None, history=history)
    made, rows = FineTuner(data, settings), np.array([3, 31, 119])  # two episodes' middles and the last one's end
    found = head_input(made, rows).detach().numpy().reshape(3, history, -1)[:, -1]
    assert found.shape[1] == 2 * 64 + 4 + 3
    own = data.proprioception[:, [2, 3, 0, 1]]
    scaled = (own - own.min(0)) / (own.max(0) - own.min(0)) * 2 - 1
    assert_allclose(found[:, 128:132], scaled[rows], atol=1e-5)
    assert_array_equal(found[:, 132:], data.language[[0, 1, 4]])
    images = {camera: array[rows] for camera, array in data.images.items()}
    assert_allclose(found[:, :128], made.encoder.encode(images), atol=1e-5)


def test_unknown_keys() -> None:
    with pytest.raises(ConfigError, match=r"unknown proprioception key 'speed': available are 'proprioception'"):
        tuner(keys=("speed",))


@pytest.mark.parametrize("changes", [{}, {"frozen": True, "augment": None}], ids=["tuned", "fixed-features"])
def test_two_views_train_resume_and_act_from_their_folder(tmp_path: Path, changes: dict[str, Any]) -> None:
    data = rich()
    settings = config(encoder=TWO, keys=("place",), **changes)
    straight = FineTuner(data, settings)
    acting = straight.fit()
    with pytest.raises(TrainingInterrupted):
        FineTuner(data, settings, tmp_path).fit(fakes.stop_after(2))
    resumed = FineTuner(data, settings, tmp_path)
    resumed.fit()
    assert same(resumed, straight)
    with pytest.raises(CheckpointError, match=r"was made with .*config.keys"):
        FineTuner(data, replace(settings, keys=("path",)), tmp_path).fit()
    acting.save(tmp_path / "policy")
    loaded = ParametricPolicy.load(tmp_path / "policy")
    assert (loaded.spec.schema, loaded.lowdim.keys) == (data.schema, ("place",))
    seen = fakes.observations(data, [0, 40, 119])
    chunk = loaded.decide(seen).chunk
    assert_array_equal(chunk, acting.decide(seen).chunk)
    # All that is seen counts: both views and the instruction.
    black = [replace(o, images=dict(o.images) | {"wrist": np.zeros_like(o.images["wrist"])}) for o in seen]
    told = [replace(o, language=-np.asarray(o.language)) for o in seen]
    assert not np.allclose(loaded.features(black), loaded.features(seen))
    assert not np.allclose(loaded.features(told), loaded.features(seen))
    for bad, message in (
        (replace(seen[0], images={"top": seen[0].images["top"]}), r"lacks camera 'wrist'; there are \['top'\]"),
        (replace(seen[0], language=None), "lacks the instruction's embedding"),
        (replace(seen[0], proprioception=seen[0].proprioception[:2]), r"expected 6 numbers, shape \(6,\), got \(2,\)"),
    ):
        with pytest.raises(DataError, match=message):
            loaded.decide([bad])


def test_learns_what_the_chosen_keys_tell() -> None:
    """One key is the answer itself: with it the head learns, where it sees no image and nothing else."""
    data = rich()
    dark = data.with_images({camera: np.zeros_like(array) for camera, array in data.images.items()})
    quick = AdamWConfig(head_lr=1e-2, encoder_lr=1e-4, warmup_steps=5)
    errors = {}
    for keys in (("answer",), ()):
        settings = config(
            head=MLP, encoder=TWO, keys=keys, frozen=True, augment=None, optimizer=quick, epochs=25, batch_size=40
        )
        acting = FineTuner(dark, replace(settings, log_every=100, checkpoint_every=1000)).fit()
        first = acting.decide(fakes.observations(dark, range(dark.num_steps))).chunk[:, 0]
        errors[keys] = float(np.linalg.norm(first - dark.actions, axis=-1).mean())
    assert errors[("answer",)] < 0.6 * errors[()], errors


# Bad input


def test_unusable_data_and_settings(pretrained: Path) -> None:
    data = fakes.demonstrations()
    with pytest.raises(DataError, match=r"unknown camera 'wrist': available are 'top' in walks"):
        FineTuner(data, config(encoder=replace(ENCODER, cameras=("wrist",))))
    with pytest.raises(DataError, match=r"walks: expected images of 32 x 32 pixels for this encoder, got 48 x 48"):
        FineTuner(fakes.demonstrations(size=48), config(), encoder_folder=pretrained / "encoder")
    with pytest.raises(ConfigError, match=r"multiple of 2, got 15"):
        tuner(horizon=15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "half"}, "unknown precision 'half'"),
        ({"head_precision": "half"}, "unknown head_precision 'half': available are 'auto', 'bfloat16', 'float32'"),
        ({"weights": "best"}, "unknown weights 'best': available are 'average', 'last'"),
        ({"epochs": 0}, "expected epochs > 0"),
        ({"epochs": math.nan}, "expected epochs > 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"chunk_length": 17}, "1 <= chunk_length <= 16, got 17"),
        ({"history": 0}, "history >= 1"),
        ({"seed": -1}, "seed >= 0"),
        ({"head": UNetConfig()}, "expected the settings of a head"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_lr": 0.0}, "head_lr > 0"),
        ({"encoder_lr": 0.0}, "encoder_lr > 0, got 0"),
        ({"betas": (0.9, 1.0)}, "two betas"),
        ({"clip_norm": 0.0}, "clip_norm > 0"),
        ({"ema_power": 2.0}, "ema_power <= 1"),
        ({"weight_decay": -1.0}, "weight_decay >= 0"),
        ({"warmup_steps": -1}, "warmup_steps >= 0"),
    ],
)
def test_impossible_rates(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdamWConfig(**options)


@pytest.mark.parametrize("what", ["loss", "grad_norm"])
def test_a_diverged_training_stops_before_its_checkpoint_and_keeps_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    made = tuner(tmp_path)
    losses = made.head.losses

    def diverging(features: torch.Tensor, *args: Any) -> torch.Tensor:
        found = losses(features, *args)
        if made.step < 2:
            return found
        # The root of zero is zero, and has no slope there.
        return found * math.nan if what == "loss" else found + torch.sqrt(0 * features.sum(dim=1))

    monkeypatch.setattr(made.head, "losses", diverging)
    with pytest.raises(ClassactError, match=r"nan.* at step 3 of 4\. .*diverged.json\. Lower .*now 0.0002, 0.002\)"):
        made.fit()
    assert [s for s, _ in list_checkpoints(tmp_path / "checkpoints")] == [2]
    assert [row["step"] for row in read_jsonl(tmp_path / "train.jsonl")] == [1, 2]
    kept = json.loads((tmp_path / DIVERGED).read_text())
    assert (kept["step"], kept[what], kept["grad_norm"]) == (3, "nan", "nan")
    assert kept["rows"] == sorted(next(made.batches(2)).tolist())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_says_what_to_lower(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(FineTuner, "gradients", full)
    monkeypatch.setattr(Trainer, "gradients", full)
    lower = (
        r"out of memory at step 1 of \d\. Raise accumulate \(--accumulate, now 1; .*\), or lower batch_size "
        r"\(--batch-size, now 16\)"
    )
    with pytest.raises(
        ClassactError, match=lower + r".* \(now U-Net of widths 8, 16\) or the encoder's crop_size \(now 28\)"
    ):
        tuner().fit()
    with pytest.raises(ClassactError, match=lower + r" or the encoder's crop_size \(now 28\)"):
        Trainer(fakes.demonstrations(), fakes.pretrain_config()).fit()
    error.args = ("something else",)
    if type(error) is RuntimeError:
        with pytest.raises(RuntimeError, match="something else"):
            tuner().fit()


def test_without_a_folder_nothing_is_kept() -> None:
    with pytest.raises(TrainingInterrupted, match=r"stopped at step 1 of 4; the state is lost: no folder"):
        tuner().fit(fakes.stop_after(1))
