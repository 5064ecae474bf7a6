"""A flow from noise to chunks whose network predicts the chunk itself (L1 Flow, arXiv 2511.17898)."""

from __future__ import annotations

import torch
from torch import Tensor

from classact.models.heads.base import Generators, standard_normal
from classact.models.heads.config import FlowConfig
from classact.models.heads.networks import NetworkHead, chunk_losses, make_network, passes

TIME_SCALE = 16.0
"""Times 0..1 are embedded as steps 0..16 are."""


class FlowHead(NetworkHead):
    """At time t a chunk a and noise z make x = t a + (1 - t) z; the network sees x and t, and predicts a.

    Sampling starts from x = z at t = 0 and goes along the straight line from z to what is predicted.

    Args:
        config: settings.
        feature_dim, action_dim, horizon: C, D and T_p.
    """

    config: FlowConfig

    def __init__(self, config: FlowConfig, feature_dim: int, action_dim: int, horizon: int) -> None:
        super().__init__(feature_dim, action_dim, horizon)
        self.config = config
        self.network = make_network(config, feature_dim, action_dim, horizon)

    def draw(self, count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:
        """A time (B,) and noise (B, T_p, D) for each row."""
        time = torch.rand(count, generator=generator, device=generator.device)
        return time.to(device), standard_normal((count, self.horizon, self.action_dim), generator, device)

    def losses(self, features: Tensor, actions: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """Error of the predicted chunk at each row's time, the mean over a row."""
        self.check(features, actions, drawn=drawn)
        time, noise = drawn
        x = torch.lerp(noise, actions, time[:, None, None])
        return chunk_losses(self.network(x, features, time * TIME_SCALE), actions, self.config.loss)

    def sampling_noise(self, count: int, generator: Generators, device: torch.device) -> tuple[Tensor, ...]:
        """(B, T_p, D) where the flow starts."""
        return (standard_normal((count, self.horizon, self.action_dim), generator, device),)

    def generate(self, features: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        """What is predicted at the last of ``config.inference_steps`` times."""
        (start,) = noise
        chunk = start
        times = [number / self.config.inference_steps for number in range(self.config.inference_steps)]
        for time, predict in zip(times, passes(self.network, features, [t * TIME_SCALE for t in times]), strict=True):
            chunk = predict(torch.lerp(start, chunk, time))
        return chunk
