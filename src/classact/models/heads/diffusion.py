"""Diffusion Policy: a chunk of actions is denoised from Gaussian noise (paper C.2 and table 8; Chi et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from classact.errors import ConfigError, MissingDependencyError, UnknownNameError, choose
from classact.models.heads.base import Generators, Head, standard_normal
from classact.models.heads.unet1d import ConditionalUNet1d, UNetConfig, check_horizon

SCHEDULERS = ("ddim", "ddpm")
BETA_SCHEDULES = ("squaredcos_cap_v2", "linear", "scaled_linear")


@dataclass(frozen=True)
class DiffusionConfig:
    """Settings of Diffusion Policy.

    Attributes:
        unet: architecture of the noise predictor.
        scheduler: how actions are sampled: "ddim" (the paper's table 8; no noise but the first), or "ddpm" (the
            released code; noise at each step). Both are trained alike, so a trained head can be sampled by either.
        training_steps: denoising steps K in training.
        inference_steps: denoising steps in sampling, at most K.
        beta_schedule: of the noise; "squaredcos_cap_v2" is the squared cosine of Nichol and Dhariwal (2021).
        clip_sample: clamp the predicted actions to [-1, 1] at each step.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    scheduler: str = "ddim"
    training_steps: int = 16
    inference_steps: int = 16
    beta_schedule: str = "squaredcos_cap_v2"
    clip_sample: bool = True

    def __post_init__(self) -> None:
        for kind, value, known in (
            ("scheduler", self.scheduler, SCHEDULERS),
            ("beta_schedule", self.beta_schedule, BETA_SCHEDULES),
        ):
            if value not in known:
                raise UnknownNameError(choose(kind, value, known))
        if not 1 <= self.inference_steps <= self.training_steps:
            raise ConfigError(
                f"expected 1 <= inference_steps <= training_steps, got {self.inference_steps} and "
                f"{self.training_steps}."
            )


def make_scheduler(config: DiffusionConfig) -> Any:
    """The scheduler of the diffusers package.

    Raises:
        MissingDependencyError: diffusers is not installed.
    """
    try:
        from diffusers import DDIMScheduler, DDPMScheduler
    except ImportError as error:
        raise MissingDependencyError(
            f"Diffusion Policy needs the package diffusers ({error}). Install it with: pip install "
            f"'classact[diffusion]'; or use the head 'mlp'."
        ) from None
    common: dict[str, Any] = {
        "num_train_timesteps": config.training_steps,
        "beta_schedule": config.beta_schedule,
        "clip_sample": config.clip_sample,
        "prediction_type": "epsilon",
    }
    kind: Any = DDIMScheduler if config.scheduler == "ddim" else DDPMScheduler
    return kind(**common)


@dataclass(frozen=True)
class DenoisingStep:
    """The constants of one step of sampling: x is the noisy chunk, e the noise that the network sees in it.

    With clean = (x - ``spread`` e) / ``signal``, clamped where the settings say so, the next x is
    ``of_clean`` clean + ``of_rest`` r + ``of_noise`` n, where r is e (DDIM) or x (DDPM) and n is fresh noise.

    Attributes:
        k: which training step it undoes.
        signal, spread: sqrt(a_k) and sqrt(1 - a_k), where a_k is the share of the signal's variance left at step k.
        of_clean, of_rest, of_noise: as above.
    """

    k: int
    signal: float
    spread: float
    of_clean: float
    of_rest: float
    of_noise: float


def denoising_steps(config: DiffusionConfig, scheduler: Any) -> tuple[DenoisingStep, ...]:
    """The steps of sampling, first to last, from a scheduler of the diffusers package.

    DDIM is equation 12 of Song et al. (2021) without noise, DDPM equations 6 and 7 of Ho et al. (2020) with the
    smaller variance. Computed in float32 in the order in which diffusers computes, and kept as plain numbers: on a GPU
    they are arguments of kernels, and nothing is read from memory or waited for.

    Args:
        config: settings.
        scheduler: from :func:`make_scheduler` for the same settings.
    """
    scheduler.set_timesteps(config.inference_steps)
    steps: list[int] = scheduler.timesteps.tolist()
    one = torch.ones(())
    out = []
    for k, after in zip(steps, [*steps[1:], None], strict=True):
        left = scheduler.alphas_cumprod[k]
        next_left = one if after is None else scheduler.alphas_cumprod[after]
        if config.scheduler == "ddim":
            of_clean, of_rest, of_noise = next_left**0.5, (1 - next_left) ** 0.5, torch.zeros(())
        else:
            ratio = left / next_left
            of_clean = next_left**0.5 * (1 - ratio) / (1 - left)
            of_rest = ratio**0.5 * (1 - next_left) / (1 - left)
            of_noise = ((1 - next_left) / (1 - left) * (1 - ratio)).clamp(min=1e-20) ** 0.5 if k else torch.zeros(())
        numbers = (left**0.5, (1 - left) ** 0.5, of_clean, of_rest, of_noise)
        out.append(DenoisingStep(k, *(float(number) for number in numbers)))
    return tuple(out)


class DiffusionHead(Head):
    """Predicts the noise in a noisy chunk; samples by removing it step by step.

    Args:
        config: settings.
        feature_dim, action_dim, horizon: C, D and T_p.
    """

    signal: Tensor
    spread: Tensor

    def __init__(self, config: DiffusionConfig, feature_dim: int, action_dim: int, horizon: int) -> None:
        super().__init__(feature_dim, action_dim, horizon)
        check_horizon(horizon, config.unet)
        self.config = config
        scheduler = make_scheduler(config)
        self.register_buffer("signal", scheduler.alphas_cumprod**0.5, persistent=False)
        self.register_buffer("spread", (1 - scheduler.alphas_cumprod) ** 0.5, persistent=False)
        self.steps = denoising_steps(config, scheduler)
        self.unet = ConditionalUNet1d(action_dim, feature_dim, config.unet)

    def draw(self, count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
        """A denoising step (B,) and noise (B, T_p, D) for each row."""
        k = torch.randint(0, self.config.training_steps, (count,), generator=generator, device=generator.device)
        return k.to(device), standard_normal((count, self.horizon, self.action_dim), generator, device)

    def losses(self, features: Tensor, actions: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """Squared error of the predicted noise at each row's denoising step, the mean over a row."""
        self.check(features, actions, drawn=drawn)
        k, noise = drawn
        noisy = self.signal[k][:, None, None] * actions + self.spread[k][:, None, None] * noise
        return torch.nn.functional.mse_loss(self.unet(noisy, features, k), noise, reduction="none").mean(dim=(1, 2))

    def sampling_noise(self, count: int, generator: Generators, device: torch.device) -> tuple[Tensor, ...]:
        """(B, S, T_p, D): for DDIM the first noise only (S = 1), for DDPM one more after each step but the last."""
        draws = 1 + sum(step.of_noise > 0 for step in self.steps)
        sources = [generator] if isinstance(generator, torch.Generator) else generator
        here = sources[0].device if len(sources) else device
        shape = (count, self.horizon, self.action_dim)
        return (torch.stack([standard_normal(shape, generator, here) for _ in range(draws)], dim=1).to(device),)

    def generate(
        self, features: Tensor, noise: tuple[Tensor, ...], network: Callable[..., Tensor] | None = None
    ) -> Tensor:
        """Denoised chunks: as many passes as ``config.inference_steps``."""
        unet, (drawn,) = self.unet if network is None else network, noise
        x = drawn[:, 0].contiguous()
        for number, step in enumerate(self.steps, 1):
            k = torch.full((len(features),), step.k, dtype=torch.int64, device=features.device)
            seen = unet(x, features, k)
            clean = (x - step.spread * seen) / step.signal
            if self.config.clip_sample:
                clean = clean.clamp(-1, 1)
            x = step.of_clean * clean + step.of_rest * (seen if self.config.scheduler == "ddim" else x)
            if step.of_noise > 0:
                x = x + step.of_noise * drawn[:, number]
        return x
