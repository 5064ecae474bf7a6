"""Diffusion Policy: a chunk of actions is denoised from Gaussian noise (paper C.2 and table 8; Chi et al. 2023).

The schedules and the steps are those of the package diffusers, bit for bit (tests compare them), without the package:
its ``step`` draws noise itself and reads values back from the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from classact.models.heads.base import Generators, standard_normal
from classact.models.heads.config import DiffusionConfig
from classact.models.heads.networks import NetworkHead, chunk_losses, make_network, passes


def signal_left(config: DiffusionConfig) -> Tensor:
    """(K,) float32 share a_k of the signal's variance that is left after the k-th of ``config.training_steps``."""
    count, low, high = config.training_steps, 0.0001, 0.02
    if config.beta_schedule == "linear":
        betas = torch.linspace(low, high, count)
    elif config.beta_schedule == "scaled_linear":
        betas = torch.linspace(low**0.5, high**0.5, count) ** 2
    else:  # Nichol and Dhariwal (2021), equation 17
        bar = [math.cos((i / count + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(count + 1)]
        betas = torch.tensor([min(1 - bar[i + 1] / bar[i], 0.999) for i in range(count)])
    return torch.cumprod(1.0 - betas, dim=0)


@dataclass(frozen=True)
class DenoisingStep:
    """The constants of one step of sampling: x is the noisy chunk, e the noise that the network sees in it.

    With clean = (x - ``spread`` e) / ``signal``, clamped where the settings say so, the next x is
    ``of_clean`` clean + ``of_rest`` r + ``of_noise`` n, where r is e (DDIM) or x (DDPM) and n is fresh noise.

    Attributes:
        k: which training step it undoes.
        signal, spread: sqrt(a_k) and sqrt(1 - a_k), see :func:`signal_left`.
        of_clean, of_rest, of_noise: as above.
    """

    k: int
    signal: float
    spread: float
    of_clean: float
    of_rest: float
    of_noise: float


def denoising_steps(config: DiffusionConfig) -> tuple[DenoisingStep, ...]:
    """The steps of sampling, first to last.

    DDIM is equation 12 of Song et al. (2021) without noise, DDPM equations 6 and 7 of Ho et al. (2020) with the
    smaller variance. Computed in float32, in the order in which diffusers computes.
    """
    bar, stride, one = signal_left(config), config.training_steps // config.inference_steps, torch.ones(())
    out = []
    for k in range((config.inference_steps - 1) * stride, -1, -stride):
        left, next_left = bar[k], bar[k - stride] if k else one
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


class DiffusionHead(NetworkHead):
    """Predicts the noise in a noisy chunk, or the chunk; samples by removing noise step by step.

    Args:
        config: settings.
        feature_dim, action_dim, horizon: C, D and T_p.
    """

    config: DiffusionConfig
    signal: Tensor
    spread: Tensor

    def __init__(self, config: DiffusionConfig, feature_dim: int, action_dim: int, horizon: int) -> None:
        super().__init__(feature_dim, action_dim, horizon)
        self.config = config
        left = signal_left(config)
        self.register_buffer("signal", left**0.5, persistent=False)
        self.register_buffer("spread", (1 - left) ** 0.5, persistent=False)
        self.steps = denoising_steps(config)
        self.network = make_network(config, feature_dim, action_dim, horizon)

    def draw(self, count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
        """A denoising step (B,) and noise (B, T_p, D) for each row."""
        k = torch.randint(0, self.config.training_steps, (count,), generator=generator, device=generator.device)
        return k.to(device), standard_normal((count, self.horizon, self.action_dim), generator, device)

    def losses(self, features: Tensor, actions: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """Squared error of what is predicted at each row's denoising step, the mean over a row."""
        self.check(features, actions, drawn=drawn)
        k, noise = drawn
        noisy = self.signal[k][:, None, None] * actions + self.spread[k][:, None, None] * noise
        target = noise if self.config.prediction == "noise" else actions
        return chunk_losses(self.network(noisy, features, k), target, "l2")

    def sampling_noise(self, count: int, generator: Generators, device: torch.device) -> tuple[Tensor, ...]:
        """(B, S, T_p, D): for DDIM the first noise only (S = 1), for DDPM one more after each step but the last."""
        draws = 1 + sum(step.of_noise > 0 for step in self.steps)
        sources = [generator] if isinstance(generator, torch.Generator) else generator
        here = sources[0].device if len(sources) else device
        shape = (count, self.horizon, self.action_dim)
        return (torch.stack([standard_normal(shape, generator, here) for _ in range(draws)], dim=1).to(device),)

    def generate(self, features: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        """Denoised chunks: as many passes as ``config.inference_steps``."""
        (drawn,) = noise
        x = drawn[:, 0].contiguous()
        predictions = passes(self.network, features, [step.k for step in self.steps])
        for number, (step, predict) in enumerate(zip(self.steps, predictions, strict=True), 1):
            seen = clean = predict(x)
            if self.config.prediction == "noise":
                clean = (x - step.spread * seen) / step.signal
            else:
                seen = (x - step.signal * clean) / step.spread
            if self.config.clip_sample:
                clean = clean.clamp(-1, 1)
            x = step.of_clean * clean + step.of_rest * (seen if self.config.scheduler == "ddim" else x)
            if step.of_noise > 0:
                x = x + step.of_noise * drawn[:, number]
        return x
