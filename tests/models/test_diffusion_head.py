from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from numpy.testing import assert_allclose
from torch import Tensor

from classact.errors import ConfigError
from classact.models.heads import DiffusionConfig, DiffusionHead, UNetConfig, make_head, standard_normal
from classact.models.heads.diffusion import denoising_steps, signal_left

TINY = DiffusionConfig(UNetConfig(widths=(16, 32), kernel_size=3, groups=4, step_dim=16))
K = 16


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cosine_alpha_bar(steps: int) -> np.ndarray[Any, Any]:
    """Nichol and Dhariwal (2021), eq. 17, betas capped at 0.999."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)]
    return np.cumprod([1 - beta for beta in betas])


class Instead(torch.nn.Module):
    """A function in the place of the U-Net, which keeps what it was called with."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.calls = function, []

    def forward(self, x: Tensor, features: Tensor, step: Tensor) -> Tensor:
        self.calls.append((x, features, step))
        return self.function(x, features, step)


def head(config: DiffusionConfig = TINY, horizon: int = 8, features: int = 4, actions: int = 2) -> DiffusionHead:
    made = make_head(config, features, actions, horizon)
    assert isinstance(made, DiffusionHead)
    return made


def noise_of(x: Tensor, _: Tensor, step: Tensor) -> Tensor:
    """Anything that depends on state and step."""
    return torch.sin(3 * x + step[:, None, None]) + 0.3 * x


# The schedule and the loss


def make_scheduler(config: DiffusionConfig) -> Any:
    """The scheduler of the diffusers package with these settings."""
    return (DDIMScheduler if config.scheduler == "ddim" else DDPMScheduler)(
        num_train_timesteps=config.training_steps,
        beta_schedule=config.beta_schedule,
        clip_sample=config.clip_sample,
        prediction_type={"noise": "epsilon", "chunk": "sample"}[config.prediction],
    )


def test_noise_follows_the_squared_cosine() -> None:
    left = signal_left(TINY)
    assert_allclose(left.numpy(), cosine_alpha_bar(K), rtol=1e-3, atol=1e-7)
    assert_allclose(left.numpy()[:15], cosine_alpha_bar(K)[:15], rtol=1e-4)


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear", "scaled_linear"])
@pytest.mark.parametrize(("training", "inference"), [(16, 16), (16, 5), (100, 16), (1, 1), (1000, 77)])
@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_schedules_have_the_bits_of_diffusers(schedule: str, training: int, inference: int, scheduler: str) -> None:
    config = replace(
        TINY, scheduler=scheduler, training_steps=training, inference_steps=inference, beta_schedule=schedule
    )
    theirs = make_scheduler(config)
    theirs.set_timesteps(inference)
    assert torch.equal(signal_left(config), theirs.alphas_cumprod)
    assert [step.k for step in denoising_steps(config)] == theirs.timesteps.tolist()


def test_the_loss_is_the_error_of_the_noise_at_random_steps() -> None:
    made = head()
    made.network = unet = Instead(noise_of)  # type: ignore[assignment]
    features = torch.randn(500, 4, generator=generator(1))
    actions = torch.rand(500, 8, 2, generator=generator(2)) * 2 - 1
    loss = made.loss(features, actions, generator(3))
    source = generator(3)
    step = torch.randint(0, K, (500,), generator=source)
    noise = torch.randn(500, 8, 2, generator=source)
    bar = torch.from_numpy(cosine_alpha_bar(K)).float()[step][:, None, None]
    noisy = bar.sqrt() * actions + (1 - bar).sqrt() * noise
    ((x, seen, k),) = unet.calls
    assert_allclose(x, noisy, atol=1e-5)
    assert seen is features
    assert torch.equal(k, step)
    assert set(step.tolist()) == set(range(K))
    assert_allclose(loss, (noise_of(noisy, seen, step) - noise).square().mean(), rtol=1e-5)


def test_of_predicted_chunks_the_loss_is_the_error_of_the_chunk() -> None:
    made = head(replace(TINY, prediction="chunk"))
    made.network = unet = Instead(noise_of)  # type: ignore[assignment]
    features, actions = torch.randn(50, 4, generator=generator(1)), torch.rand(50, 8, 2, generator=generator(2))
    loss = made.loss(features, actions, generator(3))
    ((x, seen, k),) = unet.calls
    assert_allclose(loss, (noise_of(x, seen, k) - actions).square().mean(), rtol=1e-5)


# Sampling


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("inference", [16, 4])
def test_ddim_equals_equation_12_of_song_et_al(clip: bool, inference: int) -> None:
    made = head(replace(TINY, clip_sample=clip, inference_steps=inference))
    made.network = Instead(noise_of)  # type: ignore[assignment]
    got = made.sample(torch.zeros(5, 4), generator(4))
    x = torch.randn(5, 8, 2, generator=generator(4)).double()
    bar = torch.from_numpy(cosine_alpha_bar(K))
    stride = K // inference
    for k in range(K - stride, -1, -stride):
        noise = noise_of(x, x, torch.full((5,), k))
        clean = (x - (1 - bar[k]).sqrt() * noise) / bar[k].sqrt()
        if clip:
            clean = clean.clamp(-1, 1)
        before = bar[k - stride] if k >= stride else torch.tensor(1.0)
        x = before.sqrt() * clean + (1 - before).sqrt() * noise
    assert_allclose(got, x, rtol=1e-3, atol=1e-3 * x.abs().max())


def test_ddpm_equals_equations_6_and_7_of_ho_et_al() -> None:
    made = head(replace(TINY, scheduler="ddpm"))
    made.network = Instead(noise_of)  # type: ignore[assignment]
    got = made.sample(torch.zeros(5, 4), generator(4))
    source = generator(4)
    x = torch.randn(5, 8, 2, generator=source).double()
    bar = torch.from_numpy(cosine_alpha_bar(K))
    for k in range(K - 1, -1, -1):
        before = bar[k - 1] if k else torch.tensor(1.0)
        alpha = bar[k] / before
        clean = ((x - (1 - bar[k]).sqrt() * noise_of(x, x, torch.full((5,), k))) / bar[k].sqrt()).clamp(-1, 1)
        x = (before.sqrt() * (1 - alpha) * clean + alpha.sqrt() * (1 - before) * x) / (1 - bar[k])
        if k:
            variance = (1 - before) / (1 - bar[k]) * (1 - alpha)
            x = x + variance.sqrt() * torch.randn(5, 8, 2, generator=source)
    assert_allclose(got, x, rtol=1e-3, atol=1e-4)


def sample_by_diffusers(made: DiffusionHead, features: Tensor, generator: Any) -> list[Tensor]:
    """Sampling as diffusers' own step() does it; the first noise, then what is left after each step."""
    scheduler = make_scheduler(made.config)
    states = [standard_normal((len(features), made.horizon, made.action_dim), generator, features.device)]
    scheduler.set_timesteps(made.config.inference_steps)
    with torch.no_grad():
        for k in scheduler.timesteps.tolist():
            noise = made.network(states[-1], features, torch.full((len(features),), k))
            options = {"eta": 0.0} if made.config.scheduler == "ddim" else {"generator": generator}
            states.append(scheduler.step(noise, k, states[-1], **options).prev_sample)
    return states


@pytest.mark.parametrize("schedule", ["squaredcos_cap_v2", "linear", "scaled_linear"])
@pytest.mark.parametrize(("training", "inference"), [(16, 16), (16, 5), (16, 1), (100, 16), (1, 1)])
@pytest.mark.parametrize(("scheduler", "clip"), [("ddim", True), ("ddim", False), ("ddpm", True)])
@pytest.mark.parametrize("prediction", ["noise", "chunk"])
def test_each_step_equals_diffusers(
    schedule: str, training: int, inference: int, scheduler: str, clip: bool, prediction: str
) -> None:
    options: dict[str, Any] = {"training_steps": training, "inference_steps": inference, "prediction": prediction}
    made = head(replace(TINY, scheduler=scheduler, beta_schedule=schedule, clip_sample=clip, **options))
    made.network = unet = Instead(noise_of)  # type: ignore[assignment]
    features = torch.zeros(5, 4)
    states = sample_by_diffusers(made, features, generator(4))
    unet.calls.clear()
    got = made.sample(features, generator(4))
    assert len(unet.calls) == inference
    for mine, theirs in zip([*(x for x, _, _ in unet.calls), got], states, strict=True):
        assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6 * float(theirs.abs().max()))


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
@pytest.mark.parametrize("per_row", [True, False])
def test_noise_is_drawn_as_diffusers_draws_it(scheduler: str, per_row: bool) -> None:
    made = head(replace(TINY, scheduler=scheduler, inference_steps=4))
    made.network = unet = Instead(lambda x, *_: 0 * x)  # type: ignore[assignment]
    mine, theirs = ([generator(s) for s in (7, 8, 9)] if per_row else generator(7) for _ in range(2))
    states = sample_by_diffusers(made, torch.zeros(3, 4), theirs)
    unet.calls.clear()
    got = made.sample(torch.zeros(3, 4), mine)
    assert torch.equal(unet.calls[0][0], states[0])
    assert_allclose(got, states[-1], rtol=1e-6, atol=1e-6)
    for one, other in zip(mine, theirs, strict=True) if per_row else [(mine, theirs)]:
        assert torch.equal(one.get_state(), other.get_state())
    (noise,) = made.sampling_noise(3, generator(7), torch.device("cpu"))
    assert noise.shape == (3, 4 if scheduler == "ddpm" else 1, 8, 2)


def test_noise_is_added_as_diffusers_adds_it() -> None:
    made = head()
    made.network = unet = Instead(noise_of)  # type: ignore[assignment]
    actions = torch.rand(40, 8, 2, generator=generator(2)) * 2 - 1
    k, noise = made.draw(40, generator(3), torch.device("cpu"))
    made.losses(torch.zeros(40, 4), actions, (k, noise))
    assert torch.equal(unet.calls[0][0], make_scheduler(made.config).add_noise(actions, noise, k))


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_of_data_that_are_one_chunk_every_sample_is_that_chunk(scheduler: str) -> None:
    made = head(replace(TINY, scheduler=scheduler))
    bar = torch.from_numpy(cosine_alpha_bar(K)).float()
    chunk = torch.linspace(-0.9, 0.9, 16).reshape(8, 2)

    def exact(x: Tensor, _: Tensor, step: Tensor) -> Tensor:
        b = bar[step][:, None, None]
        return (x - b.sqrt() * chunk) / (1 - b).sqrt()

    made.network = Instead(exact)  # type: ignore[assignment]
    assert_allclose(made.sample(torch.zeros(6, 4), generator()), chunk.expand(6, 8, 2), atol=1e-4)


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_samples_are_a_function_of_features_and_generator(scheduler: str) -> None:
    made = head(replace(TINY, scheduler=scheduler))
    features = torch.randn(3, 4, generator=generator(9))
    before = torch.random.get_rng_state()
    first = made.sample(features, generator(0))
    assert torch.equal(first, made.sample(features, generator(0)))
    assert not torch.equal(first, made.sample(features, generator(1)))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.shape == (3, 8, 2)
    assert first.abs().max() <= 1 + 1e-5
    assert not first.requires_grad


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_rows_with_generators_of_their_own_do_not_depend_on_the_batch(scheduler: str) -> None:
    made = head(replace(TINY, scheduler=scheduler))
    features = torch.randn(3, 4, generator=generator(9))
    together = made.sample(features, [generator(s) for s in (5, 6, 7)])
    backwards = made.sample(features.flip(0), tuple(generator(s) for s in (7, 6, 5))).flip(0)
    assert_allclose(together, backwards, atol=1e-5)
    for row in range(3):
        alone = made.sample(features[row : row + 1], [generator(5 + row)])
        assert_allclose(together[row], alone[0], atol=1e-5)


def test_a_chunk_of_no_rows() -> None:
    assert head().sample(torch.zeros(0, 4), []).shape == (0, 8, 2)
    assert standard_normal((0, 3), [], torch.device("cpu")).shape == (0, 3)


# Learning


def train(made: DiffusionHead, features: Tensor, actions: Tensor, steps: int, rate: float = 3e-3) -> None:
    optimizer = torch.optim.AdamW(made.parameters(), lr=rate)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        made.loss(features, actions, generator(step)).backward()
        optimizer.step()


def test_a_batch_of_eight_chunks_is_learned_by_heart() -> None:
    made = head(DiffusionConfig(UNetConfig((16, 32), 5, 8, 32)), horizon=16, features=8)
    time = torch.linspace(0, 1, 16)
    chunks = torch.stack(
        [torch.stack([(0.9 - 0.1 * i) * torch.sin(3 * time + i), (i / 4 - 0.9) * time], dim=1) for i in range(8)]
    )
    features = torch.eye(8)
    train(made, features.repeat(16, 1), chunks.repeat(16, 1, 1), 300, 1e-2)
    samples = torch.stack([made.sample(features, generator(seed)) for seed in range(4)])  # (4, 8, 16, 2)
    distance = (samples[:, :, None] - chunks).abs().mean(dim=(-2, -1))
    assert torch.equal(distance.argmin(dim=2), torch.arange(8).expand(4, 8))
    own = distance.diagonal(dim1=1, dim2=2)
    assert own.mean() < 0.06, own  # 0.03 when this was written
    assert distance.mean() > 5 * own.mean()


def test_of_two_answers_to_one_question_a_sample_is_one() -> None:
    # The mean of both, which regression would give, is neither.
    made = head(DiffusionConfig(UNetConfig((16,), 3, 4, 16)), horizon=4, features=1, actions=1)
    actions = torch.full((64, 4, 1), 0.6)
    actions[32:] *= -1
    train(made, torch.zeros(64, 1), actions, 300, 1e-2)
    ends = made.sample(torch.zeros(64, 1), generator(0)).squeeze(-1)
    assert (ends.abs() - 0.6).abs().mean() < 0.15
    assert 10 < int((ends.mean(dim=1) > 0).sum()) < 54


# Bad input


def test_shapes_that_do_not_fit_are_named() -> None:
    made = head()
    with pytest.raises(ConfigError, match=r"expected features of shape \(B, 4\), got \(3, 5\)"):
        made.sample(torch.zeros(3, 5), generator())
    with pytest.raises(ConfigError, match=r"expected features of shape \(B, 4\), got \(3, 1, 4\)"):
        made.loss(torch.zeros(3, 1, 4), torch.zeros(3, 8, 2), generator())
    with pytest.raises(ConfigError, match=r"expected actions of shape \(3, 8, 2\), got \(3, 16, 2\)"):
        made.loss(torch.zeros(3, 4), torch.zeros(3, 16, 2), generator())
    with pytest.raises(ConfigError, match=r"one for each of 3 rows, got 2 generators"):
        made.sample(torch.zeros(3, 4), [generator(), generator()])
    drawn = made.draw(3, generator(), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"draws for the 2 rows of features, got draws for 3: take the same rows"):
        made.losses(torch.zeros(2, 4), torch.zeros(2, 8, 2), drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "dpm"}, "unknown scheduler 'dpm': available are 'ddim', 'ddpm'"),
        ({"beta_schedule": "cosine"}, "unknown beta_schedule 'cosine'"),
        ({"inference_steps": 17}, "1 <= inference_steps <= 16, got 17"),
        ({"inference_steps": 0}, "1 <= inference_steps"),
    ],
)
def test_impossible_settings(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DiffusionConfig(**options)
