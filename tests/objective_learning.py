"""Learning with an objective from features that a linear map makes of what is seen, for tests of objectives that own
networks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from classact.objectives.base import Objective


def losses_of_learning(
    objective: Objective, seen: Tensor, features: int, rng: np.random.Generator, *, rate: float, steps: int
) -> list[float]:
    """The loss of each step of training an objective and a linear encoder together.

    Args:
        objective: whose networks are trained, too.
        seen: (N, D) what is seen at each step of the episodes.
        features: F of the encoder.
        rng: of anchors and of what goes with them.
        rate: of Adam.
        steps: with batches of 64 anchors.
    """
    encoder = torch.nn.Linear(seen.shape[1], features)
    torch.nn.init.normal_(encoder.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    torch.nn.init.zeros_(encoder.bias)
    optimizer = torch.optim.Adam([*encoder.parameters(), *objective.parameters()], rate)
    losses = []
    for _ in range(steps):
        anchors = rng.choice(len(seen), 64, replace=False)
        rows = np.concatenate([anchors[:, None], objective.draw(anchors, rng)], axis=1)
        z = encoder(seen[rows])[:, :, None]
        loss = objective.loss(z, rows, target=None, generator=torch.Generator())[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
