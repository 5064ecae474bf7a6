"""Acting by memory: the k nearest demonstrated moments, their action chunks averaged (paper section 4.4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classact.actions import ActionSpace
from classact.errors import CheckpointError, ConfigError, DataError, choose
from classact.policies.latents import ImageLatents, Latents, StateLatents, load
from classact.storage import read_arrays, read_json, verify_folder, write_folder
from classact.types import Demonstrations, FloatArray, IntArray, Observation
from classact.windows import window_indices

FORMAT = "classact-retrieval-1"


@dataclass(frozen=True)
class RetrievalConfig:
    """Settings of retrieval.

    Attributes:
        k: k_nn, neighbours averaged (table 4: 64).
        temperature: tau_nn of the softmax over cosine similarities (table 5: 0.001 / 0.002 for Push-T).
        chunk_length: T_a, actions executed open-loop per retrieval (table 4: 16).
        horizon: T_p, actions in a chunk; at least ``chunk_length``.
        min_actions: moments with fewer demonstrated actions left than this are not retrieved. 1 keeps all (the paper);
            more keeps the policy from resting just short of the goal where demonstrations end on arrival, for their
            last chunks are mostly the repeated last action.
    """

    k: int = 64
    temperature: float = 0.001
    chunk_length: int = 16
    horizon: int = 16
    min_actions: int = 1

    def __post_init__(self) -> None:
        if self.k < 1 or not self.temperature > 0:
            raise ConfigError(f"expected k >= 1 and temperature > 0, got k {self.k} and {self.temperature}.")
        if not 1 <= self.min_actions <= self.horizon:
            raise ConfigError(
                f"expected 1 <= min_actions <= horizon, got min_actions {self.min_actions}, horizon {self.horizon}."
            )
        if not 1 <= self.chunk_length <= self.horizon:
            raise ConfigError(
                f"expected 1 <= chunk_length <= horizon, got chunk_length {self.chunk_length}, horizon {self.horizon}."
            )


@dataclass(frozen=True)
class Neighbors:
    """What a decision was made from: row numbers, similarities and weights, nearest first; each (B, k)."""

    rows: IntArray
    cosine: FloatArray
    weights: FloatArray


def retrievable(episode_ends: IntArray, config: RetrievalConfig, where: str) -> IntArray:
    """Steps that may be retrieved: those with at least ``config.min_actions`` demonstrated actions left.

    Raises:
        ConfigError: more neighbours than such steps; ``where`` names the bank or its data.
    """
    left = np.repeat(episode_ends, np.diff(episode_ends, prepend=0)) - np.arange(int(episode_ends[-1]))
    rows = np.flatnonzero(left >= config.min_actions)
    if config.k > len(rows):
        why = "" if config.min_actions == 1 else f" with at least {config.min_actions} actions left"
        raise ConfigError(
            f"{where}: k = {config.k} neighbours asked of a bank of {len(rows)} moments{why}. Lower k to at most "
            f"{len(rows)}, or add demonstrations."
        )
    return np.asarray(rows, np.int64)


class RetrievalPolicy:
    """k-NN over a bank of demonstrated moments.

    Args:
        latents: what is compared.
        bank: (N, d) unit latents of the demonstrations' steps.
        actions: (N, D) unnormalised actions.
        episode_ends: (E,) of the demonstrations.
        config: settings.
        action_space: what the D dimensions mean; its rotations are averaged as rotations. None where there are none:
            every dimension is averaged by itself.

    Raises:
        ConfigError: k is larger than the bank.
        DataError: bank, actions and episode_ends disagree about the number of steps, or the actions are none of the
            action space.
    """

    name = "retrieval"

    def __init__(
        self,
        latents: Latents,
        bank: FloatArray,
        actions: FloatArray,
        episode_ends: IntArray,
        config: RetrievalConfig,
        *,
        action_space: ActionSpace | None = None,
    ) -> None:
        if not len(bank) == len(actions) == episode_ends[-1]:
            raise DataError(
                f"expected one latent and one action per step, got a bank of {len(bank)} moments, {len(actions)} "
                f"actions and episodes of {int(episode_ends[-1])} steps in all. Build the policy from one data set."
            )
        if action_space is not None:
            action_space.check_rotations(actions, "the demonstrated actions")
        self.latents, self.config, self.action_space = latents, config, action_space
        self.bank, self.actions, self.episode_ends = bank, actions, episode_ends
        self._rows = torch.from_numpy(retrievable(episode_ends, config, "the bank"))
        self._bank = torch.from_numpy(np.ascontiguousarray(bank))[self._rows]
        self._chunks = window_indices(episode_ends, config.horizon)[:, : config.chunk_length]

    @staticmethod
    def build(
        latents: Latents, data: Demonstrations, config: RetrievalConfig, *, action_space: ActionSpace | None = None
    ) -> RetrievalPolicy:
        """Encode all demonstrations into a bank."""
        where = f"{data.name} ({data.source})"
        retrievable(data.episode_ends, config, where)  # this and the next before the long encoding
        if action_space is not None:
            action_space.check_rotations(data.actions, where)
        bank = latents.demonstrations(data)
        return RetrievalPolicy(latents, bank, data.actions, data.episode_ends, config, action_space=action_space)

    @property
    def needs_images(self) -> bool:
        """Whether observations must carry rendered images."""
        return self.latents.kind == "image"

    @property
    def chunk_length(self) -> int:
        """T_a."""
        return self.config.chunk_length

    def search(self, z: FloatArray) -> Neighbors:
        """The k nearest bank rows of (B, d) unit latents by cosine similarity, exact."""
        cosine, nearest = torch.topk(torch.from_numpy(z) @ self._bank.T, self.config.k, dim=1)
        weights = torch.softmax(cosine / self.config.temperature, dim=1)
        return Neighbors(self._rows[nearest].numpy(), cosine.numpy(), weights.numpy())

    def chunks(self, rows: IntArray) -> FloatArray:
        """(..., T_a, D) demonstrated actions from the given bank rows on."""
        return self.actions[self._chunks[rows]]

    def decide(self, observations: Sequence[Observation]) -> tuple[FloatArray, Neighbors]:
        """The chunk (B, T_a, D) and the neighbours it was averaged from."""
        neighbors = self.search(self.latents.observations(observations))
        return self._average(self.chunks(neighbors.rows), neighbors.weights), neighbors

    def _average(self, chunks: FloatArray, weights: FloatArray) -> FloatArray:
        """(B, k, T_a, D) chunks and (B, k) weights -> (B, T_a, D), rotations orthonormal."""
        if self.action_space is not None and self.action_space.has_rotations:
            return self.action_space.average(chunks, weights)
        return np.einsum("bk,bktd->btd", weights, chunks).astype(np.float32)

    def act(self, observations: Sequence[Observation]) -> FloatArray:
        """(B, T_a, D) unnormalised actions."""
        return self.decide(observations)[0]

    def save(self, folder: Path) -> None:
        """Write everything needed to act as one folder, sealed with checksums."""
        from safetensors.numpy import save_file

        card: dict[str, Any] = {
            "format": FORMAT,
            "config": asdict(self.config),
            "latents": self.latents.settings(),
            "bank": len(self.bank),
        }
        if self.action_space is not None:
            card["action_space"] = self.action_space.to_json()

        def fill(path: Path) -> None:
            if isinstance(self.latents, ImageLatents):
                self.latents.encoder.save_pretrained(path / "encoder")
            arrays = {"bank": self.bank, "actions": self.actions, "episode_ends": self.episode_ends}
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path / "bank.safetensors")
            (path / "policy.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

        write_folder(Path(folder), fill)

    @staticmethod
    def load(folder: str | Path, **overrides: Any) -> RetrievalPolicy:
        """Read a folder written by :meth:`save`.

        Args:
            folder: the policy's folder.
            overrides: fields of :class:`RetrievalConfig` to change, such as ``k=16``.

        Raises:
            CheckpointError: damaged or incomplete, or not a retrieval policy.
            ConfigError: unknown overrides, or values out of range.
        """
        path = Path(folder)
        for name in overrides:
            if name not in RetrievalConfig.__dataclass_fields__:
                raise ConfigError(choose("retrieval setting", name, RetrievalConfig.__dataclass_fields__))
        verify_folder(path)
        card = read_json(path / "policy.json", CheckpointError)
        if card.get("format") != FORMAT:
            raise CheckpointError(f"{path / 'policy.json'}: expected format {FORMAT!r}, got {card.get('format')!r}.")
        arrays = read_arrays(path / "bank.safetensors", CheckpointError)
        latents: ImageLatents | StateLatents = load(card["latents"], path)
        config = RetrievalConfig(**(card["config"] | overrides))
        space = None  # in policies without rotations, and in all that were saved before there were any
        if "action_space" in card:
            space = ActionSpace.from_json(card["action_space"], str(path / "policy.json"))
        bank, actions, ends = (arrays[name] for name in ("bank", "actions", "episode_ends"))
        return RetrievalPolicy(latents, bank, actions, ends, config, action_space=space)
