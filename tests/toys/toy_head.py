"""A head: regression by an MLP; there is no U-Net, and nothing random."""

from dataclasses import dataclass

from torch import nn

from classact.models.heads import HEADS, HeadConfig, HeadEntry
from classact.models.heads.base import Head


@dataclass(frozen=True)
class PlainConfig(HeadConfig):
    """Settings: width of the hidden layer, and a factor on the actions, which training does not see."""

    name = "plain"
    about = "regression of chunks by an MLP"
    acting = ("scale",)  # what may be changed where the policy is loaded

    hidden: int = 256
    scale: float = 1.0


class Plain(Head):
    """Features (B, C) -> all actions of a chunk at once."""

    def __init__(self, config, feature_dim, action_dim, horizon):
        super().__init__(feature_dim, action_dim, horizon)
        self.config = config
        self.layers = nn.Sequential(
            nn.Linear(feature_dim, config.hidden), nn.ReLU(), nn.Linear(config.hidden, horizon * action_dim), nn.Tanh()
        )

    def chunks(self, features):
        """(B, T_p, D) in [-1, 1]."""
        return self.layers(features).unflatten(1, (self.horizon, self.action_dim))

    def losses(self, features, actions, drawn):
        """(B,) squared errors."""
        self.check(features, actions)
        return (self.chunks(features) - actions).square().mean(dim=(1, 2))

    def generate(self, features, noise):
        """(B, T_p, D)."""
        return self.config.scale * self.chunks(features)


HEADS.register("plain", HeadEntry(PlainConfig, Plain))
