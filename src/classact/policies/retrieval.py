"""Acting by memory: the k nearest demonstrated timesteps, their action chunks averaged (paper section 4.4)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from classact.data.actions import ActionSpace
from classact.data.copies import describe_copies, first_copies, group_copies
from classact.data.types import Demonstrations, FloatArray, IntArray, StateArray
from classact.data.windows import window_indices
from classact.errors import CheckpointError, ConfigError, DataError
from classact.models.encoders.image import ImageEncoder
from classact.policies.base import Decision, Memory, Neighbors, PolicySpec, Timestep, as_histories
from classact.policies.config import ControlConfig, NoveltyConfig, RetrievalConfig, is_exact
from classact.policies.folder import read_metadata, with_overrides, write_policy
from classact.policies.latents import ImageLatents, Latents, LatentSettings, load_latents, unit, warm_up
from classact.policies.novelty import (
    HELD_OUT,
    LEFT_OUT,
    Novelty,
    Progress,
    distance,
    episode_maxima,
    left_out_distances,
)
from classact.policies.published import Published
from classact.policies.search import ExactSearch, Search, Ties, make_search
from classact.policies.speed import played, reach
from classact.utils.codec import ADDED
from classact.utils.machine import check_device
from classact.utils.storage import read_arrays

logger = logging.getLogger(__name__)

FORMAT = "classact-retrieval-3"
PARTLY = "classact-retrieval-4"
"""Format of a bank of which some episodes carry no actions: versions that do not know it would retrieve these, too."""
LEFT_OUT_AT_ONCE = 512
PASSED_OVER = 1024
"""Nearest timesteps among whose episodes one is followed where an episode returns to an observation."""


@dataclass(frozen=True)
class RetrievalMetadata:
    """What policy.json of a retrieval policy holds; ``bank``: N, demonstrated timesteps, for other readers."""

    format: str
    config: RetrievalConfig
    latents: LatentSettings
    bank: int
    action_space: ActionSpace | None
    novelty: Novelty | None
    control: ControlConfig = field(default_factory=ControlConfig, metadata=ADDED)


def retrievable(
    episode_ends: IntArray, config: RetrievalConfig, where: str, labelled: NDArray[np.bool_] | None = None
) -> IntArray:
    """Steps that may be retrieved: those with at least ``config.min_actions`` demonstrated actions left, in episodes
    that carry any (``labelled``, (E,); None: all do).

    Raises:
        ConfigError: more neighbours than such steps; ``where`` names the bank or its data.
    """
    lengths = np.diff(episode_ends, prepend=0)
    left = np.repeat(episode_ends, lengths) - np.arange(int(episode_ends[-1]))
    enough = left >= config.min_actions
    rows = np.flatnonzero(enough if labelled is None else enough & np.repeat(labelled, lengths))
    if config.k > len(rows):
        why = "" if config.min_actions == 1 else f" with at least {config.min_actions} actions left"
        if labelled is not None and not labelled.all():
            why += f" in the {labelled.sum()} of {len(labelled)} episodes that carry actions"
        raise ConfigError(
            f"{where}: k = {config.k} neighbours asked of a bank of {len(rows)} timesteps{why}. Lower k to at most "
            f"{len(rows)}, or add demonstrations."
        )
    return np.asarray(rows, np.int64)


def check_left_out(first: IntArray, episode_ends: IntArray, rows: IntArray, m: int) -> None:
    """Refuse to leave episodes out of a bank, whose ``rows`` may be retrieved and ``first_copies`` are ``first``."""
    different = len(np.unique(first))
    if different < 2:
        copies = f", not counting {len(first) - 1} of the same actions" if len(first) > 1 else ""
        raise ConfigError(
            f"leaving an episode out needs at least 2 episodes, the bank has 1{copies}. Add demonstrations."
        )
    timesteps = np.bincount(first[np.searchsorted(episode_ends, rows, side="right")], minlength=len(first))
    if (left := len(rows) - int(timesteps.max())) < m:
        raise ConfigError(
            f"leaving episode {int(timesteps.argmax())} out of the bank leaves {left} timesteps of others to compare "
            f"with, expected at least m = {m}. Add demonstrations."
        )


def check_heldout(
    actions: FloatArray,
    episode_ends: IntArray,
    heldout: Demonstrations,
    number: int = 0,
    labelled: NDArray[np.bool_] | None = None,
) -> None:
    """Refuse to hold out what is learned from: (N, D) actions, of the ``labelled`` episodes. ``number`` is that of the
    first held-out episode.
    """
    E, N = len(episode_ends), len(actions)
    ends = np.append(episode_ends, N + heldout.episode_ends)
    known = np.append(np.ones(E, bool) if labelled is None else labelled, heldout.carries_actions())
    first = first_copies(np.concatenate([actions, heldout.actions]), ends, known)
    if (first[E:] < E).any():
        e = int(np.argmax(first[E:] < E))
        raise DataError(
            f"{heldout.name} ({heldout.source}): episode {number + e} has the same {heldout.lengths[e]} actions as "
            f"episode {first[E + e]} of the bank. Calibrate on episodes that are not in it, or leave one "
            f"out (heldout=None)."
        )


def no_alarm(data: Demonstrations, heldout: Demonstrations | None, rows: IntArray, m: int) -> str:
    """Why a bank of these data can have no novelty alarm; empty where it can.

    Args:
        data: what is learned from.
        heldout: what calibrates, the episodes that follow in the file; None: each episode is left out in turn.
        rows: (R,) steps that may be retrieved.
        m: nearest timesteps that are compared with.

    Raises:
        DataError: a held-out episode is a copy of one that is learned from.
    """
    if heldout is not None:
        check_heldout(data.actions, data.episode_ends, heldout, len(data), data.labelled)
        return f"{len(rows)} timesteps to compare with, expected at least m = {m}." if len(rows) < m else ""
    first = first_copies(data.actions, data.episode_ends, data.labelled)
    if copies := describe_copies(first, f"{data.name} ({data.source})"):
        logger.warning("%s", copies)
    try:
        check_left_out(first, data.episode_ends, rows, m)
    except ConfigError as error:
        return str(error)
    return ""


class RetrievalPolicy(Published):
    """k-NN over a bank of demonstrated timesteps.

    Args:
        latents: what is compared.
        bank: (N, d) unit latents of the demonstrations' steps.
        actions: (N, D) unnormalised actions.
        episode_ends: (E,) of the demonstrations.
        config: settings.
        action_space: what the D dimensions mean; its rotations are averaged as rotations. None where there are none:
            every dimension is averaged by itself.
        calibration: of the novelty score, see :meth:`calibrate`; None: decisions have no score.
        labelled: (E,) which episodes carry actions, and may be retrieved; None: all.
        control: how its chunks are executed; None: whole.

    Raises:
        ConfigError: k is larger than the bank, or the calibration is of another bank.
        DataError: parts of different numbers of steps, or actions that are none of the action space.
        MissingDependencyError: ``config.search`` asks for a package that is not installed.
    """

    def __init__(
        self,
        latents: Latents,
        bank: FloatArray,
        actions: FloatArray,
        episode_ends: IntArray,
        config: RetrievalConfig,
        *,
        action_space: ActionSpace | None = None,
        calibration: Novelty | None = None,
        labelled: NDArray[np.bool_] | None = None,
        control: ControlConfig | None = None,
    ) -> None:
        if not len(bank) == len(actions) == episode_ends[-1]:
            raise DataError(
                f"expected one latent and one action per step, got a bank of {len(bank)} timesteps, {len(actions)} "
                f"actions and episodes of {int(episode_ends[-1])} steps in all. Build the policy from one data set."
            )
        self.latents, self.config, self.action_space = latents, config, action_space
        self.control = control or ControlConfig()
        self.bank, self.actions, self.episode_ends = bank, actions, episode_ends
        self.labelled = None if labelled is None or labelled.all() else labelled
        if action_space is not None:
            some = slice(None) if self.labelled is None else np.repeat(self.labelled, np.diff(episode_ends, prepend=0))
            action_space.check_rotations(actions[some], "the demonstrated actions")
        self._rows = retrievable(episode_ends, config, "the bank", self.labelled)
        if calibration is not None and calibration.timesteps != len(self._rows):
            raise ConfigError(
                f"the novelty score was calibrated on a bank of {calibration.timesteps} timesteps, this one has "
                f"{len(self._rows)}. Calibrate again."
            )
        self.calibration = calibration
        if config.proprioception_weight != 1 and not isinstance(latents, ImageLatents):
            raise ConfigError(
                f"proprioception_weight {config.proprioception_weight:g} weighs proprioception against image features, "
                f"but these latents are of kind {latents.kind!r}. Leave it at 1."
            )
        self.device = torch.device("cpu")
        self._search = self._make_search()
        self._windows = window_indices(episode_ends, config.horizon)

    @staticmethod
    def build(
        latents: Latents, data: Demonstrations, config: RetrievalConfig, *, action_space: ActionSpace | None = None
    ) -> RetrievalPolicy:
        """Encode all demonstrations into a bank; those that carry actions may be retrieved."""
        where = f"{data.name} ({data.source})"
        # This and the next before the long encoding.
        retrievable(data.episode_ends, config, where, data.labelled)
        if action_space is not None:
            action_space.check_rotations(data.labelled_actions(), where)
        parts = (latents, latents.demonstrations(data), data.actions, data.episode_ends)
        return RetrievalPolicy(*parts, config, action_space=action_space, labelled=data.labelled)

    def with_config(self, config: RetrievalConfig) -> RetrievalPolicy:
        """The same bank by other settings, not calibrated."""
        parts = (self.latents, self.bank, self.actions, self.episode_ends)
        return RetrievalPolicy(*parts, config, action_space=self.action_space, labelled=self.labelled)

    @property
    def spec(self) -> PolicySpec:
        """Decides from one observation; its alarm level is that of the latest calibration."""
        return PolicySpec(
            "retrieval",
            self.config.chunk_length,
            self.latents.cameras,
            schema=self.latents.schema,
            action_space=self.action_space,
            alarm=None if self.calibration is None else self.calibration.alarm,
            remembers=self.config.revisit is not None,
            speed=self.config.speed,
            language_source=self.latents.language_source,
            control=self.control,
            acting=self.config.acting_settings(),
        )

    @property
    def image_encoder(self) -> ImageEncoder | None:
        """That of the latents."""
        return self.latents.encoder

    def to(self, device: str | torch.device) -> Self:
        """Move bank and encoder; an index of faiss stays on the CPU.

        Raises:
            ConfigError: an unknown device, or a GPU that torch does not see.
        """
        wanted = check_device(device)
        if self.latents.encoder is not None:
            self.latents.encoder.to(wanted)
        if wanted != self.device:
            self.device = wanted
            self._search = self._make_search()
        return self

    def prepare(self, batch: int = 1) -> None:
        """Choose kernels and allocate memory now, so that the first decisions are as fast as the later ones."""
        if self.latents.encoder is not None:
            warm_up(self.latents.encoder, batch, bf16=self.latents.bf16)
        m = 0 if self.calibration is None else self.calibration.config.m
        self._search.search(np.repeat(self.bank[:1], batch, axis=0), max(self.config.k, m))

    def _make_search(self) -> Search:
        timesteps = self.bank if len(self._rows) == len(self.bank) else self.bank[self._rows]
        # On the CPU ties stay as torch.topk leaves them: results that are published were made so.
        ties: Ties = "any" if self.device.type == "cpu" else "row"
        return make_search(self._weigh(timesteps), self.config.search, device=self.device, ties=ties)

    def _weigh(self, z: FloatArray) -> FloatArray:
        """(B, d) unit latents -> those that are compared: proprioception weighted, length 1 again."""
        if self.config.proprioception_weight == 1:
            return z
        assert isinstance(self.latents, ImageLatents)
        first = self.latents.encoder.feature_dim  # an instruction may follow
        z = z.copy()
        z[:, first : first + len(self.latents.lowdim.range.low)] *= self.config.proprioception_weight
        return unit(z)

    def searched(self) -> tuple[FloatArray, IntArray, IntArray]:
        """The (R, d) latents that are compared with, the bank rows (R,) that they are, and the (N, T_p) rows of the
        actions from each bank row on.
        """
        return self._weigh(self.bank[self._rows]), self._rows, self._windows

    def search(self, z: FloatArray) -> Neighbors:
        """The k nearest bank rows of (B, d) unit latents by cosine similarity."""
        return self._neighbors(*self._search.search(self._weigh(z), self.config.k))

    def _neighbors(self, nearest: IntArray, cosine: FloatArray) -> Neighbors:
        weights = torch.softmax(torch.from_numpy(cosine) / self.config.temperature, dim=1)
        return Neighbors(self._rows[nearest], cosine, weights.numpy())

    def calibrate(
        self,
        heldout: Demonstrations | None = None,
        config: NoveltyConfig | None = None,
        *,
        progress: Progress | None = None,
    ) -> Novelty:
        """Give decisions a novelty score, see :mod:`classact.policies.novelty`. All steps of an episode count.

        Args:
            heldout: demonstrations that are not in the bank and that the encoder did not train on: the bound on false
                alarms is exact. None: each episode of the bank against the others: the bound is approximate, and N x N
                cosines are computed, on the policy's device.
            config: settings.
            progress: called with (steps done, in all).

        Raises:
            ConfigError: fewer than m timesteps to compare with, or an index that misses neighbours and nothing held
                out.
            DataError: a held-out episode is in the bank.
        """
        config = config or NoveltyConfig()
        if config.m > len(self._rows):
            raise ConfigError(
                f"m = {config.m} nearest timesteps asked of a bank of {len(self._rows)}. Lower m, or add "
                f"demonstrations."
            )
        if heldout is None:
            if not is_exact(self.config.search):
                raise ConfigError(
                    f"leaving episodes out of the bank takes the exact nearest timesteps, which search "
                    f"{self.config.search!r} may miss, so that decisions would be scored too novel. Hold "
                    f"demonstrations out and calibrate on them, or use search 'auto'."
                )
            distances, ends = self._left_out(config.m, progress)
        else:
            check_heldout(self.actions, self.episode_ends, heldout, labelled=self.labelled)
            copies = first_copies(heldout.actions, heldout.episode_ends, heldout.labelled)
            steps, ends = group_copies(copies, heldout.episode_ends)
            distances = self.distances(self.latents.demonstrations(heldout), config.m)[steps]
        kind = LEFT_OUT if heldout is None else HELD_OUT
        self.calibration = Novelty(episode_maxima(distances, ends), len(self._rows), config, kind)
        if self.calibration.rank > self.calibration.episodes:
            logger.warning("novelty: %s", self.calibration.describe())
        return self.calibration

    def _left_out(self, m: int, progress: Progress | None) -> tuple[StateArray, IntArray]:
        """Distances of all steps to the rest of the bank, copies of an episode as one, and where these episodes end."""
        first = first_copies(self.actions, self.episode_ends, self.labelled)
        check_left_out(first, self.episode_ends, self._rows, m)
        search, rows, bank = self._search, self._rows, self._weigh(self.bank)
        steps, ends = group_copies(first, self.episode_ends)
        if copies := describe_copies(first, "the bank"):
            logger.warning("novelty: %s", copies)
            bank, rows = bank[steps], np.flatnonzero(np.isin(steps, rows))
        if copies or not isinstance(search, ExactSearch):
            search = ExactSearch(bank[rows], device=self.device)
        return left_out_distances(search, rows, bank, ends, m, progress), ends

    def decide_left_out(self, rows: IntArray, progress: Progress | None = None) -> Decision:
        """What would be done at the bank's timesteps ``rows`` (Q,) without their own episodes and copies of these.

        Where fewer than k timesteps are left, those are averaged. ``progress`` is called with (rows done, Q).

        Raises:
            ConfigError: there are not two different episodes.
        """
        first = first_copies(self.actions, self.episode_ends, self.labelled)
        check_left_out(first, self.episode_ends, self._rows, 1)
        steps, ends = group_copies(first, self.episode_ends)
        bank, search, candidates = self._weigh(self.bank), self._search, self._rows
        if (np.diff(steps) < 0).any() or not isinstance(search, ExactSearch):
            bank, candidates = bank[steps], np.flatnonzero(np.isin(steps, self._rows))
            search = ExactSearch(bank[candidates], device=self.device)
        asked = np.argsort(steps)[rows]
        order = np.argsort(asked, kind="stable")  # queries of one group are consecutive
        group = np.searchsorted(ends, asked[order], side="right")
        bounds = np.searchsorted(candidates, np.stack([np.append(0, ends[:-1]), ends], axis=1))
        k = min(self.config.k, len(candidates) - int((bounds[:, 1] - bounds[:, 0]).max()))
        parts: list[tuple[Any, ...]] = []
        for start in range(0, len(rows), LEFT_OUT_AT_ONCE):
            some = slice(start, start + LEFT_OUT_AT_ONCE)
            nearest, cosine = search.search(bank[asked[order[some]]], k, bounds[group[some]])
            weights = torch.softmax(torch.from_numpy(cosine) / self.config.temperature, dim=1).numpy()
            found = steps[candidates[nearest]]
            parts.append((self._average(self.chunks(found), weights), found, cosine, weights))
            if progress is not None:
                progress(min(some.stop, len(rows)), len(rows))
        back = np.argsort(order)
        chunk, nearest, cosine, weights = (np.concatenate(part)[back] for part in zip(*parts, strict=True))
        return Decision(chunk, neighbors=Neighbors(nearest, cosine, weights))

    def distances(self, z: FloatArray, m: int) -> StateArray:
        """(B,) one minus the mean of the m largest cosines of (B, d) unit latents with the bank, not calibrated."""
        return distance(self._search.search(self._weigh(z), m)[1])

    def novelty(self, z: FloatArray) -> FloatArray:
        """(B,) calibrated score in [0, 1] of (B, d) unit latents; above the alarm level they count as unknown.

        Raises:
            ConfigError: the policy is not calibrated.
        """
        if self.calibration is None:
            raise ConfigError("this policy has no calibrated novelty score: call calibrate first.")
        return self.calibration.score(self.distances(z, self.calibration.config.m))

    def chunks(self, rows: IntArray) -> FloatArray:
        """(..., T_a, D) demonstrated actions from the given bank rows on, at the policy's speed."""
        return self._played(rows, self.config.chunk_length, self.config.speed)

    def _played(self, rows: IntArray, length: int, speed: float) -> FloatArray:
        chunks = self.actions[self._windows[rows][..., : reach(length, speed)]]
        return played(chunks, speed, length, self.action_space)

    def decide(self, observations: Sequence[Timestep], memory: Memory = ()) -> Decision:
        """Chunks (B, T_a, D), the neighbours they were averaged from and, where calibrated, novelty scores.

        Args:
            observations: of B environments.
            memory: latents of their episodes' earlier decisions; where one of them comes back (``config.revisit``), the
                neighbours are of different episodes, and all weight is on the one that is followed.
        """
        return self.decide_from(self.latents.observations([one for (one,) in as_histories(observations, 1)]), memory)

    def decide_from(self, latents: FloatArray, memory: Memory = ()) -> Decision:
        """:meth:`decide`, from (B, d) unit latents of the observations."""
        z = self._weigh(latents)
        k, calibration = self.config.k, self.calibration
        m = 0 if calibration is None else calibration.config.m
        rows, cosine = self._search.search(z, max(k, m))
        neighbors = self._neighbors(rows[:, :k], cosine[:, :k])
        novelty = away = None
        if calibration is not None:
            away = distance(cosine[:, :m])
            novelty = calibration.score(away)
        visits = None if self.config.revisit is None else self._visits(z, memory)
        if visits is not None and visits.any():
            neighbors = self._pass_over(z, neighbors, visits)
        chunk = self._average(self.chunks(neighbors.rows), neighbors.weights)
        return Decision(chunk, novelty, neighbors, None if visits is None else z, visits, away)

    def _visits(self, z: FloatArray, memory: Memory) -> IntArray:
        """(B,) how many of an episode's earlier decisions had latents like these."""
        assert self.config.revisit is not None
        visits = np.zeros(len(z), np.int64)
        for b, earlier in enumerate(memory):
            if len(earlier):
                visits[b] = np.count_nonzero(earlier @ z[b] > self.config.revisit)
        return visits

    def _pass_over(self, z: FloatArray, neighbors: Neighbors, visits: IntArray) -> Neighbors:
        """The neighbours with those of environments that have been there before replaced: the nearest timestep of each
        of the nearest episodes, all weight on the n-th at the n-th return. After the last of them comes the first.
        """
        again = np.flatnonzero(visits)
        rows, cosine = self._search.search(z[again], min(max(PASSED_OVER, self.config.k), len(self._rows)))
        rows = self._rows[rows]
        episodes = np.searchsorted(self.episode_ends, rows, side="right")
        found = Neighbors(neighbors.rows.copy(), neighbors.cosine.copy(), neighbors.weights.copy())
        for i, b in enumerate(again):
            first = np.sort(np.unique(episodes[i], return_index=True)[1])
            followed = first[(visits[b] - 1) % len(first)]
            # As many as of other environments: the followed one, the nearest others, and timesteps without weight.
            others = [j for j in (*first, *range(len(rows[i]))) if j != followed]
            shown = np.sort([followed, *list(dict.fromkeys(others))[: self.config.k - 1]])
            found.rows[b], found.cosine[b], found.weights[b] = rows[i, shown], cosine[i, shown], shown == followed
        return found

    def followed(self, neighbors: Neighbors, length: int, speed: float = 1.0) -> FloatArray:
        """(B, ``length``, D) demonstrated actions from the heaviest neighbour of each environment on, at ``speed``."""
        heaviest = np.take_along_axis(neighbors.rows, neighbors.weights.argmax(axis=1)[:, None], axis=1)[:, 0]
        return self._played(heaviest, length, speed)

    def _average(self, chunks: FloatArray, weights: FloatArray) -> FloatArray:
        """(B, k, T_a, D) chunks and (B, k) weights -> (B, T_a, D), rotations orthonormal."""
        if self.action_space is not None and self.action_space.has_rotations:
            return self.action_space.average(chunks, weights)
        return np.einsum("bk,bktd->btd", weights, chunks).astype(np.float32)

    def save(self, folder: Path) -> None:
        """Write everything needed to act as one folder, with checksums."""
        from safetensors.numpy import save_file

        config, latents = self.config, self.latents.settings
        written = FORMAT if self.labelled is None else PARTLY
        metadata = RetrievalMetadata(
            written, config, latents, len(self.bank), self.action_space, self.calibration, self.control
        )

        def fill(path: Path) -> None:
            if self.latents.encoder is not None:
                self.latents.encoder.save_pretrained(path / "encoder")
            arrays: dict[str, NDArray[Any]] = {"bank": self.bank, "actions": self.actions}
            arrays["episode_ends"] = self.episode_ends
            if self.labelled is not None:
                arrays["labelled"] = self.labelled
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path / "bank.safetensors")

        write_policy(folder, metadata, fill)

    @staticmethod
    def load(folder: str | Path, *, device: str = "cpu", **overrides: Any) -> RetrievalPolicy:
        """Read a folder written by :meth:`save`.

        Args:
            folder: the policy's folder.
            device: where to compute.
            overrides: fields of :class:`RetrievalConfig` to change, such as ``k=16``. With another ``min_actions``,
                ``proprioception_weight`` or approximate ``search`` the nearest timesteps are others: the novelty score
                must then be calibrated again.

        Raises:
            CheckpointError: damaged or incomplete, or not a retrieval policy.
            ConfigError: unknown overrides, values out of range, or a device that is not there.
        """
        check_device(device)
        path = Path(folder)
        metadata = read_metadata(RetrievalMetadata, path, FORMAT, PARTLY)
        config = with_overrides(metadata.config, overrides, "retrieval setting")
        arrays = read_arrays(path / "bank.safetensors", CheckpointError)
        changed = [] if metadata.novelty is None else _changed(metadata.config, config)
        for key in changed:
            before, now = getattr(metadata.config, key), getattr(config, key)
            message = "%s: its novelty score was calibrated with %s %s and is left out, for now it is %s"
            logger.warning(message, path, key, before, now)
        return RetrievalPolicy(
            load_latents(metadata.latents, path),
            arrays["bank"],
            arrays["actions"],
            arrays["episode_ends"],
            config,
            action_space=metadata.action_space,
            calibration=None if changed else metadata.novelty,
            labelled=arrays.get("labelled"),
            control=metadata.control,
        ).to(device)


def _changed(before: RetrievalConfig, now: RetrievalConfig) -> list[str]:
    """Which settings differ that distances, and so a calibration, depend on."""
    keys = ["min_actions", "proprioception_weight"]
    if not (is_exact(before.search) and is_exact(now.search)):
        keys.append("search")
    return [key for key in keys if getattr(before, key) != getattr(now, key)]
