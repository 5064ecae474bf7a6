"""Baselines of clam.py whose parts the library has no other use for.

LAPA's transfer; linear inverse dynamics, LAOM and DynaMo of states.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from classact.data.normalize import MinMax
from classact.data.types import Demonstrations, FloatArray, Observation
from classact.models.latent_actions import LatentActionModel
from classact.models.latent_actions.model import around, transitions
from classact.models.latent_actions.networks import dense
from classact.objectives.base import Material
from classact.objectives.config import DynaMoConfig
from classact.objectives.dynamo import DynaMo
from classact.policies.base import FunctionPolicy, Policy, PolicySpec, Timestep, as_histories
from classact.train.batches import epoch_batches
from classact.train.head import FineTuner

FEATURES, HIDDEN = 64, 256
RIDGE = 1e-3  # relative to the mean square of inputs
TARGET_DECAY = 0.99
WIDE = 64  # dimensions of LAOM's latent actions, which are more than CLAM's by intention
RATE = 3e-4
Progress = Callable[[int, int, str], None]


def continued(tuner: FineTuner, before: FineTuner) -> FineTuner:
    """``tuner`` from the weights that ``before`` has learned, but for the last layer, whose size is another (LAPA)."""
    known = before.average_head.state_dict()
    for head in (tuner.head, tuner.average_head):
        own = head.state_dict()
        head.load_state_dict(own | {name: one for name, one in known.items() if own[name].shape == one.shape})
    tuner.lowdim = before.lowdim
    tuner._lowdim = torch.from_numpy(before.lowdim.demonstrations(tuner.demonstrations))
    return tuner


@dataclass(frozen=True)
class LinearInverse:
    """Actions as a linear map of an observation and its change to the next one: how hard inverse dynamics are.

    Attributes:
        model: says what is observed, and how it is scaled.
        weights: (2 D + 1, A).
        actions: of the demonstrations it was fitted to.
    """

    model: LatentActionModel
    weights: NDArray[np.float64]
    actions: MinMax

    @staticmethod
    def fit(model: LatentActionModel, data: Demonstrations) -> LinearInverse:
        """By ridge regression on all transitions."""
        actions, rows = data.action_range(), transitions(data.episode_ends)
        inputs = _with_changes(model, data)[rows]
        gram = inputs.T @ inputs + RIDGE * len(rows) * np.eye(inputs.shape[1])
        return LinearInverse(model, np.linalg.solve(gram, inputs.T @ actions.apply(data.actions[rows])), actions)

    def decode(self, data: Demonstrations) -> FloatArray:
        """(N, A) actions in their own units; those of an episode's last step are those of the one before."""
        found = _with_changes(self.model, data) @ self.weights
        last = np.asarray(data.episode_ends) - 1
        found[last] = found[last - 1]
        return self.actions.invert(np.clip(found, -1, 1))


def _with_changes(model: LatentActionModel, data: Demonstrations) -> NDArray[np.float64]:
    """(N, 2 D + 1) observations, their changes to the next one, both scaled by all demonstrations, and 1."""
    seen = model.observations(data).astype(np.float64)
    change = 1.0 if model.dynamics.change is None else model.dynamics.change.numpy()
    return np.c_[seen, (np.roll(seen, -1, axis=0) - seen) / change, np.ones(len(seen))]


@dataclass(eq=False)
class LAOM:
    """Latent actions with supervision while they are learned (arXiv 2502.00379), of states.

    As in the paper: continuous latents of many dimensions, a prediction of features instead of observations (target:
    an averaged encoder), and a linear action head taught jointly by the labelled transitions. Other than there: one
    step instead of several between the two observations, and no augmentation, which states do not have.
    """

    model: LatentActionModel
    encoder: nn.Module
    inverse: nn.Module
    head: nn.Linear
    actions: MinMax

    @staticmethod
    def learn(
        model: LatentActionModel, data: Demonstrations, updates: int, batch: int, seed: int, progress: Progress
    ) -> LAOM:
        """From all demonstrations, and the actions of those that carry any; ``model`` says what is observed."""
        torch.manual_seed(seed)
        context, size = model.config.context, model.dynamics.size
        encoder = dense(size, [HIDDEN], FEATURES)
        inverse = dense((context + 1) * FEATURES, 2 * [HIDDEN], WIDE)
        forward = dense(context * FEATURES + WIDE, 2 * [HIDDEN], FEATURES)
        actions = data.action_range()
        head = nn.Linear(WIDE, len(actions.low))
        target = copy.deepcopy(encoder).requires_grad_(False)
        networks = nn.ModuleList([encoder, inverse, forward, head])
        optimizer = torch.optim.AdamW(networks.parameters(), lr=RATE, weight_decay=1e-3, fused=True)
        made = LAOM(model, encoder, inverse, head, actions)
        seen = torch.from_numpy(model.observations(data))
        near = torch.from_numpy(around(data.episode_ends, context))
        done = torch.from_numpy(actions.apply(data.actions))
        rows = transitions(data.episode_ends)
        labelled = rows[np.repeat(data.carries_actions(), data.lengths)[rows]]
        rng = np.random.default_rng(seed)
        for step, some in enumerate(epoch_batches(len(rows), batch, seed, 0)):
            if step == updates:
                break
            inputs = seen[near[torch.from_numpy(rows[some])]]
            features = encoder(model.dynamics.seen(inputs))
            z = inverse(features.flatten(1))
            predicted = forward(torch.cat([features[:, :-1].flatten(1), z], dim=1))
            with torch.no_grad():
                wanted = target(inputs[:, -1])
            loss = nn.functional.mse_loss(predicted, wanted)
            own = torch.from_numpy(labelled[rng.integers(0, len(labelled), batch)])
            loss = loss + nn.functional.mse_loss(head(made._z(seen[near[own]])), done[own])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
            optimizer.step()
            for average, value in zip(target.parameters(), encoder.parameters(), strict=True):
                average.lerp_(value.detach(), 1 - TARGET_DECAY)
            progress(step + 1, updates, f"loss {float(loss.detach()):.4f}")
        return made

    def _z(self, inputs: Tensor) -> Tensor:
        z: Tensor = self.inverse(self.encoder(self.model.dynamics.seen(inputs)).flatten(1))
        return z

    @torch.inference_mode()
    def infer(self, data: Demonstrations) -> FloatArray:
        """(N, WIDE) latent actions; those of an episode's last step are those of the one before."""
        inputs = torch.from_numpy(self.model.observations(data))[around(data.episode_ends, self.model.config.context)]
        z = self._z(inputs).numpy()
        last = np.asarray(data.episode_ends) - 1
        z[last] = z[last - 1]
        return np.asarray(z, np.float32)

    @torch.inference_mode()
    def decode(self, z: FloatArray) -> FloatArray:
        """(..., WIDE) latent actions -> (..., A) actions in their own units."""
        return self.actions.invert(self.head(torch.from_numpy(np.ascontiguousarray(z))).clamp(-1, 1).numpy())


def decoded(policy: Policy, decode: Callable[[FloatArray], FloatArray]) -> Policy:
    """A policy of latent actions that acts by what they are decoded to."""
    spec = PolicySpec("decoded", policy.spec.chunk_length)
    return FunctionPolicy(spec, lambda observations: decode(policy.decide(observations).chunk))


@dataclass(eq=False)
class StateFeatures:
    """A frozen encoder of states, learned by DynaMo from observations alone; its policies see features alone."""

    model: LatentActionModel
    encoder: nn.Module

    @staticmethod
    def learn(
        model: LatentActionModel, data: Demonstrations, updates: int, batch: int, seed: int, progress: Progress
    ) -> StateFeatures:
        """From all demonstrations; ``model`` says what is observed."""
        torch.manual_seed(seed)
        encoder = dense(model.dynamics.size, 2 * [HIDDEN], FEATURES)
        config = DynaMoConfig(latent_dim=model.config.latent_dim, layers=2, width=96)
        objective = DynaMo(config, Material(FEATURES, data.episode_ends, torch.zeros(data.num_steps, 1), seed))
        networks = nn.ModuleList([encoder, objective])
        optimizer = torch.optim.AdamW(networks.parameters(), lr=RATE, fused=True)
        seen, generator = torch.from_numpy(model.observations(data)), torch.Generator()
        for step, anchors in enumerate(epoch_batches(data.num_steps, batch, seed, 0)):
            if step == updates:
                break
            rng = np.random.default_rng([seed, step])
            rows = np.concatenate([anchors[:, None], objective.draw(anchors, rng)], axis=1)
            features = encoder(seen[torch.from_numpy(rows)])[:, :, None]
            loss, _ = objective.loss(features, rows, target=None, generator=generator)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(networks.parameters(), 0.1)  # the authors' (per module there)
            optimizer.step()
            progress(step + 1, updates, f"loss {float(loss.detach()):.4f}")
        return StateFeatures(model, encoder)

    @torch.inference_mode()
    def of(self, data: Demonstrations) -> FloatArray:
        """(N, FEATURES) of all steps."""
        return np.asarray(self.encoder(torch.from_numpy(self.model.observations(data))).numpy(), np.float32)

    def policy(self, inner: Policy) -> Policy:
        """A policy of features as one of what the simulator shows."""
        model = self.model

        @torch.inference_mode()
        def act(observations: Sequence[Timestep]) -> FloatArray:
            latest = [history[-1].proprioception for history in as_histories(observations, 1)]
            seen = ((np.stack(latest) - model.center) / model.scale).astype(np.float32)
            features = self.encoder(torch.from_numpy(seen)).numpy()
            return inner.decide([Observation({}, one) for one in features]).chunk

        return FunctionPolicy(PolicySpec("features", inner.spec.chunk_length), act)
