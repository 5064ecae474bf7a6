"""Diffusion Policy: a chunk of actions is denoised from Gaussian noise (paper C.2 and table 8; Chi et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from classact.errors import ConfigError, MissingDependencyError, choose
from classact.heads.base import Generators, Head, standard_normal
from classact.heads.unet1d import ConditionalUNet1d, UNetConfig, check_horizon

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
                raise ConfigError(choose(kind, value, known))
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


class DiffusionHead(Head):
    """Predicts the noise in a noisy chunk; samples by removing it step by step.

    Args:
        config: settings.
        feature_dim, action_dim, horizon: C, D and T_p.
    """

    def __init__(self, config: DiffusionConfig, feature_dim: int, action_dim: int, horizon: int) -> None:
        super().__init__(feature_dim, action_dim, horizon)
        check_horizon(horizon, config.unet)
        self.config = config
        self.scheduler = make_scheduler(config)
        self.unet = ConditionalUNet1d(action_dim, feature_dim, config.unet)

    def loss(self, features: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of the predicted noise at a random denoising step of each row."""
        self._check(features, actions)
        B, device = len(features), features.device
        drawn = torch.randint(0, self.config.training_steps, (B,), generator=generator, device=generator.device)
        step = drawn.to(device)
        noise = standard_normal(tuple(actions.shape), generator, device)
        noisy = self.scheduler.add_noise(actions, noise, step)
        return torch.nn.functional.mse_loss(self.unet(noisy, features, step), noise)

    @torch.no_grad()
    def sample(self, features: Tensor, generator: Generators) -> Tensor:
        """Denoised chunks. DDIM draws the first noise only, DDPM one more after each step but the last."""
        self._check(features, generator=generator)
        B, device = len(features), features.device
        x = standard_normal((B, self.horizon, self.action_dim), generator, device)
        self.scheduler.set_timesteps(self.config.inference_steps)
        for k in self.scheduler.timesteps.tolist():
            step = torch.full((B,), k, dtype=torch.int64, device=device)
            noise = self.unet(x, features, step)
            if self.config.scheduler == "ddim":
                x = self.scheduler.step(noise, k, x, eta=0.0).prev_sample
            else:
                sources = generator if isinstance(generator, torch.Generator) else list(generator)
                x = self.scheduler.step(noise, k, x, generator=sources).prev_sample
        return x
