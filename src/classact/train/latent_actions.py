"""Training of a latent action model (CLAM, arXiv 2505.04999): reconstruction of all demonstrations, actions of a few.

One convention holds throughout: a_t, and z_t that stands for it, takes o_t to o_{t+1}.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.types import IntArray
from classact.errors import ConfigError
from classact.models.latent_actions.decoder import HIDDEN, ActionDecoder
from classact.models.latent_actions.model import LatentActionModel, around, as_inputs, transitions
from classact.models.weights import seeded
from classact.train.batches import epoch_batches
from classact.train.config import COLLAPSED, INCIDENTAL, LatentActionTrainingConfig
from classact.train.engine import Batch, Stats, Training, check_engine
from classact.utils.codec import to_json, without

LABELLED_STREAM = 0x6C61626C  # keeps draws of labelled transitions apart from those of all
LEAST_CODES = 1.5  # perplexity of a codebook, below which nearly all transitions have one code
SETTLED = 0.25  # share of the updates before which nothing is said of a collapse

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class LatentActionTraining(Training):
    """One training. All demonstrations teach what leads from one observation to the next, those that carry actions
    (``Demonstrations.labelled``) what latent actions mean.

    Dropout, of transformers alone, depends on how many ranks share a batch; all else does not.

    Attributes:
        model: what is trained.
    """

    config: LatentActionTrainingConfig

    def __post_init__(self) -> None:
        data, config = self.demonstrations, self.config
        check_engine(self.engine, self.ranks, config.batch_size, data.num_steps)
        where = f"{data.name} ({data.source})"
        labelled = data.carries_actions()
        if not labelled.any():
            raise ConfigError(
                f"{where}: none of {len(data)} demonstrations carries actions, so nothing can say what latent actions "
                f"mean. Add some that do; a few are enough, and they need not be good (--labelled)."
            )
        self._rows = transitions(data.episode_ends)
        own = np.repeat(labelled, data.lengths)
        self._labelled = self._rows[own[self._rows]]
        if not len(self._labelled):
            raise ConfigError(
                f"{where}: the {int(labelled.sum())} labelled demonstrations have one step each, and no transition "
                f"from one observation to the next. Label longer ones."
            )
        actions = data.action_range()
        hidden = tuple(config.model.scaled(size) for size in HIDDEN)
        with seeded(config.seed + 1):
            decoder = ActionDecoder(config.model.latent_dim, actions, data.schema.actions, hidden)
        device = torch.device(self.device)
        self.model = LatentActionModel.start(config.model, data, decoder, seed=config.seed)
        self.dynamics, self.decoder = self.model.dynamics.to(device), decoder.to(device)
        self._seen = torch.from_numpy(self.model.observations(data)).to(device)
        self._around = torch.from_numpy(around(data.episode_ends, config.model.context)).to(device)
        self._actions = torch.from_numpy(actions.apply(data.actions)).to(device)
        self._found: tuple[Tensor, Tensor] | None = None
        self._said = False
        groups = [
            {"params": list(network.parameters()), "peak": rate, "weight_decay": decay}
            for network, rate, decay in (
                (self.dynamics, config.learning_rate, config.weight_decay),
                (self.decoder, config.decoder_lr, config.decoder_weight_decay),
            )
        ]
        self.start(
            networks={"dynamics": self.dynamics, "decoder": self.decoder},
            averages={},
            optimizer=torch.optim.AdamW(groups, lr=config.learning_rate, eps=1e-5, fused=True),
            schedule=config.schedule(),
            images={},
            loads=False,
        )
        self.examples = len(self._rows)
        self.batch_size = config.batch_size

    # -- one step ---------------------------------------------------------------------------------------------------

    def batches(self, first_step: int) -> Iterator[IntArray]:
        """(B, 2): the steps of transitions of all demonstrations, and of labelled ones beside them."""
        config = self.config
        everyone = epoch_batches(len(self._rows), config.batch_size, config.seed, first_step)
        for step, some in enumerate(everyone, first_step):
            rng = np.random.default_rng([config.seed, LABELLED_STREAM, step])
            own = self._labelled[rng.integers(0, len(self._labelled), len(some))]
            yield np.stack([self._rows[some], own], axis=1)

    def gradients(self, rows: IntArray, part: slice, images: Batch, generator: torch.Generator) -> Stats:  # noqa: ARG002
        """Of the reconstruction error, and at every K-th update of the action error."""
        config, device = self.config, torch.device(self.device)
        own = torch.from_numpy(rows[part]).to(device)
        share = len(own) / len(rows)
        after = self.step >= config.updates
        self.dynamics.train(not after)
        noise = int(torch.randint(1 << 62, (), generator=generator, device=device)) + part.start
        stats = dict.fromkeys(("loss", "reconstruction", "copy", "action"), torch.zeros((), device=device))
        with seeded(noise):  # for dropout, where there is any
            if device.type == "cuda":
                torch.cuda.manual_seed(noise)
            loss = torch.zeros((), device=device)
            if config.supervision != "alone" and not after:
                loss = loss + self._reconstruction(own[:, 0], share, stats)
            every = 1 if config.supervision == "alone" else config.every
            if after or (config.supervision != "after" and self.step % every == 0):
                with torch.set_grad_enabled(not after):
                    z = self.dynamics.infer(self._inputs(own[:, 1]))
                error = nn.functional.mse_loss(self.decoder(z), self._actions[own[:, 1]]) * share
                stats["action"] = error.detach()
                loss = loss + (error if after else config.beta * error)
            elif config.supervision == "joint" and (self.step + 1) % config.log_every == 0:
                with torch.no_grad():  # for the record: updates without labels are logged as well
                    z = self.dynamics.infer(self._inputs(own[:, 1]))
                    stats["action"] = nn.functional.mse_loss(self.decoder(z), self._actions[own[:, 1]]) * share
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
        stats["loss"] = loss.detach()
        if self.ranks.world > 1:
            self.ranks.sum_([value for value in stats.values() if value.ndim == 0])
        return stats

    def _inputs(self, rows: Tensor) -> Tensor:
        """(B, C + 1, *O) o_{t-C+1..t+1} of transitions."""
        return as_inputs(self._seen[self._around[rows]])

    def _reconstruction(self, rows: Tensor, share: float, stats: Stats) -> Tensor:
        seen = self._inputs(rows)
        context, following = seen[:, :-1], seen[:, -1]
        z = self.dynamics.raw(seen)
        extra = torch.zeros((), device=z.device)
        if (quantizer := self.dynamics.quantizer) is not None:
            raw = z
            z, commitment, numbers = quantizer(raw)
            extra = self.config.commitment * commitment * share
            counts, sums = quantizer.tally(raw, numbers)
            if self.ranks.world > 1:
                self.ranks.sum_([counts, sums])
            self._found = counts, sums
            shares = counts / counts.sum()
            stats["codes"] = torch.special.entr(shares).sum().exp() * share
        error = self.dynamics.error(self.dynamics.predict(context, z), following) * share
        stats["reconstruction"] = error.detach()
        stats["copy"] = self.dynamics.error(context[:, -1], following).detach() * share
        if (self.step + 1) % self.config.log_every == 0:
            self._look_for_collapse(context, following, z.detach(), stats, share)
        return error + extra

    @torch.no_grad()
    def _look_for_collapse(self, context: Tensor, following: Tensor, z: Tensor, stats: Stats, share: float) -> None:
        others = self.dynamics.error(self.dynamics.predict(context, z.roll(1, 0)), following) * share
        stats["reconstruction_by_others"] = others
        if self._said or self.step < SETTLED * self.config.updates:
            return
        ratio = float(others / stats["reconstruction"].clamp_min(1e-12))
        codes = float(stats["codes"] / share) if "codes" in stats else math.inf
        if ratio >= COLLAPSED and codes >= LEAST_CODES:
            return
        self._said = True
        how = (
            f"nearly all transitions have one of the {self.config.model.codes} codes (perplexity {codes:.2f})"
            if codes < LEAST_CODES
            else f"predictions are as good with those of other transitions (error {ratio:.3f} times as large)"
        )
        if self.ranks.first:
            logger.warning(
                "latent actions have collapsed at update %d of %d: %s. Raise beta or latent_dim, lower learning_rate, "
                "or standardize what is observed.",
                *(self.step + 1, self.config.updates, how),
            )

    def clip(self) -> Tensor:
        """Dynamics and decoder by themselves; the norm of both."""
        limit = self.schedule.clip_norm
        norms = [nn.utils.clip_grad_norm_(network.parameters(), limit) for network in (self.dynamics, self.decoder)]
        return torch.stack(norms).norm()

    def after_step(self) -> None:
        """Move the codebook."""
        if self._found is not None and self.dynamics.quantizer is not None:
            self.dynamics.quantizer.follow(*self._found)
            self._found = None

    # -- the whole --------------------------------------------------------------------------------------------------

    def fit(self, progress: Callable[[int, int, str], None] | None = None) -> LatentActionModel:
        """:meth:`Training.run`; returns the trained model, in eval mode."""
        self.run(progress)
        self.dynamics.eval()
        self.decoder.eval()
        self.model.training = {"updates": self.step, "data": self.demonstrations.fingerprint()}
        return self.model

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        return super().identity() | {"images": self._digest(), "config": without(to_json(self.config), *INCIDENTAL)}

    def _digest(self) -> Any:
        from classact.data.images import frames_digest

        camera = self.config.model.camera
        return {} if camera is None else {camera: frames_digest(self.demonstrations.images[camera])}

    def settle(self, flags: Mapping[str, Any]) -> None:
        """Nothing here is "auto"."""
