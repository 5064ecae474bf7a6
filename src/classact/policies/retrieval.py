"""Acting by memory: the k nearest demonstrated moments, their action chunks averaged (paper section 4.4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classact.errors import CheckpointError, ConfigError
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
    """

    k: int = 64
    temperature: float = 0.001
    chunk_length: int = 16
    horizon: int = 16

    def __post_init__(self) -> None:
        if self.k < 1 or not self.temperature > 0:
            raise ConfigError(f"expected k >= 1 and temperature > 0, got k {self.k} and {self.temperature}.")
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


class RetrievalPolicy:
    """k-NN over a bank of demonstrated moments.

    Args:
        latents: what is compared.
        bank: (N, d) unit latents of the demonstrations' steps.
        actions: (N, D) unnormalised actions.
        episode_ends: (E,) of the demonstrations.
        config: settings.

    Raises:
        ConfigError: k is larger than the bank.
    """

    name = "retrieval"

    def __init__(
        self, latents: Latents, bank: FloatArray, actions: FloatArray, episode_ends: IntArray, config: RetrievalConfig
    ) -> None:
        if config.k > len(bank):
            raise ConfigError(
                f"k = {config.k} neighbours asked of a bank of {len(bank)} moments. Lower k, or add demonstrations."
            )
        self.latents, self.config = latents, config
        self.bank, self.actions, self.episode_ends = bank, actions, episode_ends
        self._bank = torch.from_numpy(np.ascontiguousarray(bank))
        self._chunks = window_indices(episode_ends, config.horizon)[:, : config.chunk_length]

    @staticmethod
    def build(latents: Latents, data: Demonstrations, config: RetrievalConfig) -> RetrievalPolicy:
        """Encode all demonstrations into a bank."""
        if config.k > data.num_steps:
            raise ConfigError(
                f"k = {config.k} neighbours asked of a bank of {data.num_steps} moments. "
                f"Lower k, or add demonstrations."
            )
        return RetrievalPolicy(latents, latents.demonstrations(data), data.actions, data.episode_ends, config)

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
        cosine, rows = torch.topk(torch.from_numpy(z) @ self._bank.T, self.config.k, dim=1)
        weights = torch.softmax(cosine / self.config.temperature, dim=1)
        return Neighbors(rows.numpy(), cosine.numpy(), weights.numpy())

    def chunks(self, rows: IntArray) -> FloatArray:
        """(..., T_a, D) demonstrated actions from the given bank rows on."""
        return self.actions[self._chunks[rows]]

    def decide(self, observations: Sequence[Observation]) -> tuple[FloatArray, Neighbors]:
        """The chunk (B, T_a, D) and the neighbours it was averaged from."""
        neighbors = self.search(self.latents.observations(observations))
        chunk = np.einsum("bk,bktd->btd", neighbors.weights, self.chunks(neighbors.rows))
        return chunk.astype(np.float32), neighbors

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
        """
        path = Path(folder)
        verify_folder(path)
        card = read_json(path / "policy.json", CheckpointError)
        if card.get("format") != FORMAT:
            raise CheckpointError(f"{path / 'policy.json'}: expected format {FORMAT!r}, got {card.get('format')!r}.")
        arrays = read_arrays(path / "bank.safetensors", CheckpointError)
        latents: ImageLatents | StateLatents = load(card["latents"], path)
        config = RetrievalConfig(**(card["config"] | overrides))
        return RetrievalPolicy(latents, arrays["bank"], arrays["actions"], arrays["episode_ends"], config)
