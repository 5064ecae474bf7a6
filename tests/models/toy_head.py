"""A policy head in one file outside of classact: an MLP over the flattened chunk, without any U-Net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from classact.models.heads import HEADS, Head, HeadConfig, HeadEntry


@dataclass(frozen=True)
class ToyConfig(HeadConfig):
    """Settings of the toy.

    Attributes:
        width: hidden units.
        scale: factor on the actions, which training does not see.
    """

    name: ClassVar[str] = "toy"
    about: ClassVar[str] = "an MLP over the flattened chunk"
    acting: ClassVar[tuple[str, ...]] = ("scale",)

    width: int = 32
    scale: float = 1.0


class ToyHead(Head):
    """Direct regression of the flattened chunk."""

    config: ToyConfig

    def __init__(self, config: ToyConfig, feature_dim: int, action_dim: int, horizon: int) -> None:
        super().__init__(feature_dim, action_dim, horizon)
        self.config = config
        self.layers = nn.Sequential(
            nn.Linear(feature_dim, config.width), nn.ReLU(), nn.Linear(config.width, horizon * action_dim)
        )

    def _chunks(self, features: Tensor) -> Tensor:
        chunks: Tensor = self.layers(features).unflatten(1, (self.horizon, self.action_dim))
        return chunks

    def losses(self, features: Tensor, actions: Tensor, drawn: tuple[Tensor, ...]) -> Tensor:  # noqa: ARG002
        """Squared error of the actions, the mean over a row."""
        self.check(features, actions)
        return (self._chunks(features) - actions).square().mean(dim=(1, 2))

    def generate(self, features: Tensor, noise: tuple[Tensor, ...]) -> Tensor:  # noqa: ARG002
        """The predicted chunks."""
        return self.config.scale * self._chunks(features)


HEADS.register("toy", HeadEntry(ToyConfig, ToyHead))
