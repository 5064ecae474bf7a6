"""What a policy head must offer: a loss to train it by, and chunks of actions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from classact.errors import ConfigError
from classact.models.heads.config import HeadConfig, head_entry
from classact.models.weights import seeded
from classact.utils.lazy import resolve

Generators = torch.Generator | Sequence[torch.Generator]
"""One generator for a batch, or one for each of its rows: then no row depends on what else is in the batch."""


class Head(nn.Module, ABC):
    """Maps features of observations to chunks of normalised actions (paper C.2).

    Attributes:
        config: settings, of the class that :data:`classact.models.heads.HEADS` names for this head.
        feature_dim: C, features of one decision: those of T_o observations one behind the other.
        action_dim: D.
        horizon: T_p, actions of a chunk.
        center, scale: (C,) of :meth:`standardize`; 0 and 1 where nothing else was set.
    """

    config: HeadConfig
    center: Tensor
    scale: Tensor

    def __init__(self, feature_dim: int, action_dim: int, horizon: int) -> None:
        super().__init__()
        if min(feature_dim, action_dim, horizon) < 1:
            raise ConfigError(
                f"expected at least one feature, action dimension and step, got feature_dim {feature_dim}, action_dim "
                f"{action_dim}, horizon {horizon}."
            )
        self.feature_dim, self.action_dim, self.horizon = feature_dim, action_dim, horizon
        self.register_buffer("center", torch.zeros(feature_dim))
        self.register_buffer("scale", torch.ones(feature_dim))

    def standardize(self, features: Tensor) -> Tensor:
        """(B, C) features as :meth:`losses` and :meth:`generate` take them."""
        return (features - self.center) / self.scale

    def draw(self, count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, ...]:  # noqa: ARG002
        """All that is random in the loss of a batch; nothing, unless a head says otherwise.

        Processes that share a batch draw for the whole of it, from generators that are alike, and take the rows that
        are theirs: together they then have the losses of one process.

        Args:
            count: B, rows of the batch.
            generator: source of all randomness.
            device: where the result is needed.

        Returns:
            Tensors with B rows each.
        """
        return ()

    def extra_repr(self) -> str:
        """What the head is, for error messages."""
        return f"{self.config.name!r}, {self.config.describe()}"

    @abstractmethod
    def losses(self, features: Tensor, actions: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:
        """(B,) behaviour-cloning losses, each the mean over steps and dimensions; a function of its own row alone.

        Args:
            features: (B, C), standardised.
            actions: (B, T_p, D) in [-1, 1].
            drawn: the rows of :meth:`draw` that belong to these.

        Raises:
            ConfigError: shapes other than those the head was made for.
        """

    def loss(self, features: Tensor, actions: Tensor, generator: torch.Generator) -> Tensor:
        """Scalar: the mean of :meth:`losses` under fresh draws; arguments and errors are those of both."""
        return self.losses(features, actions, self.draw(len(features), generator, features.device)).mean()

    def sampling_noise(
        self,
        count: int,  # noqa: ARG002
        generator: Generators,  # noqa: ARG002
        device: torch.device,  # noqa: ARG002
    ) -> tuple[Tensor, ...]:
        """All that is random in ``count`` chunks, as tensors with one row for each; nothing, as in :meth:`draw`."""
        return ()

    @abstractmethod
    def generate(self, features: Tensor, noise: tuple[Tensor, ...]) -> Tensor:
        """Chunks (B, T_p, D) of normalised actions; nothing is drawn here.

        Args:
            features: (B, C), standardised.
            noise: from :meth:`sampling_noise`, for B rows.
        """

    def accelerate(self) -> None:
        """Compile what takes nearly all of the time of :meth:`generate` on a GPU, in place; weights stay as they are.

        Called once, before the first decision; the next call may take a minute.
        """

    @torch.no_grad()
    def sample(self, features: Tensor, generator: Generators) -> Tensor:
        """Chunks (B, T_p, D) of normalised actions for (B, C) features; without gradient.

        Raises:
            ConfigError: another number of features than the head was made for, or of generators than rows.
        """
        self.check(features, generator=generator)
        return self.generate(self.standardize(features), self.sampling_noise(len(features), generator, features.device))

    def check(
        self,
        features: Tensor,
        actions: Tensor | None = None,
        generator: Generators | None = None,
        drawn: tuple[Tensor, ...] = (),
    ) -> None:
        """Refuse what does not fit the head or each other.

        Raises:
            ConfigError: with the shapes found and expected.
        """
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise ConfigError(f"expected features of shape (B, {self.feature_dim}), got {tuple(features.shape)}.")
        expected = (len(features), self.horizon, self.action_dim)
        if actions is not None and tuple(actions.shape) != expected:
            raise ConfigError(f"expected actions of shape {expected}, got {tuple(actions.shape)}.")
        if isinstance(generator, Sequence) and len(generator) != len(features):
            raise ConfigError(
                f"expected one generator, or one for each of {len(features)} rows, got {len(generator)} generators."
            )
        if other := [len(rows) for rows in drawn if len(rows) != len(features)]:
            raise ConfigError(
                f"expected draws for the {len(features)} rows of features, got draws for {other[0]}: take the same "
                f"rows of both."
            )


def standard_normal(shape: tuple[int, ...], generator: Generators, device: torch.device) -> Tensor:
    """Noise of ``shape`` on ``device``, drawn where the generators are, so that it is the same on every device.

    Args:
        shape: (B, ...).
        generator: one for the batch, or B, of which each draws its row.
        device: where the noise is needed.
    """
    if isinstance(generator, torch.Generator):
        return torch.randn(shape, generator=generator, device=generator.device).to(device)
    rows = [torch.randn(shape[1:], generator=g, device=g.device) for g in generator]
    return torch.stack(rows).to(device) if rows else torch.zeros(shape, device=device)


def make_head(config: HeadConfig, feature_dim: int, action_dim: int, horizon: int, *, seed: int = 0) -> Head:
    """A head with initial weights drawn from ``seed``; global generators are left as they were.

    Raises:
        ConfigError: settings of no registered head, or a horizon that the architecture cannot make.
    """
    make = resolve(head_entry(config).make)
    with seeded(seed):
        head: Head = make(config, feature_dim, action_dim, horizon)
    return head
