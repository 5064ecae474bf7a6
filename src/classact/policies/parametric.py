"""Acting by a learned head: features of an observation in, a chunk of actions out (paper 4.4, "parametric")."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classact.data.actions import ActionSpace
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.schema import Schema
from classact.data.types import FloatArray, Observation
from classact.errors import CheckpointError, ConfigError, UnknownNameError, choose
from classact.models.encoders import ImageEncoder
from classact.models.heads import (
    DiffusionConfig,
    FastSampler,
    Head,
    HeadConfig,
    head_config_from_json,
    head_config_to_json,
    head_name,
    load_head_weights,
    make_head,
)
from classact.policies.base import Moment, as_histories
from classact.policies.latents import stack_images, warm_up
from classact.utils.machine import check_device
from classact.utils.storage import read_json, verify_folder, write_folder

logger = logging.getLogger(__name__)

FORMAT = "classact-parametric-2"
WEIGHTS = "head.safetensors"
CARD = "policy.json"
BEYOND = 0.05
"""Share of half the demonstrated range by which actions may leave it without a word: networks overshoot a little."""
SAMPLING = ("scheduler", "inference_steps")
"""Settings of diffusion that may be changed after training."""

_said: set[tuple[str, str]] = set()
"""(policy, subject) of warnings of this process: a training makes a new policy for each of its evaluations."""


@dataclass(frozen=True)
class ParametricConfig:
    """Settings of acting.

    Attributes:
        chunk_length: T_a, actions executed open-loop per decision (table 7: 12).
        history: T_o, observations that a decision is made from (table 7: 1).
        seed: of the noise that a diffusion head starts from.
        bf16: run the encoder's trunk in bfloat16.
    """

    chunk_length: int = 12
    history: int = 1
    seed: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.chunk_length < 1 or self.history < 1 or self.seed < 0:
            raise ConfigError(
                f"expected chunk_length >= 1, history >= 1 and seed >= 0, got {self.chunk_length}, {self.history} and "
                f"{self.seed}."
            )


@dataclass(eq=False)
class ParametricPolicy:
    """An image encoder, a head and the normalisations between them and the world.

    The noise of a decision comes from a generator that is seeded by ``config.seed`` and by what is observed. So the
    policy keeps no state between calls, and an episode does not depend on which others are in its batch, on the order
    of calls or on the number of workers. Only an observation that is equal to the last bit gets the same noise again.

    Args:
        encoder: image encoder with its declared transform.
        head: of ``history * (F + D_p)`` features.
        actions: normalisation of actions, fitted on the demonstrations.
        lowdim: what is observed beside images, and its normalisation, fitted on the demonstrations.
        config: settings.
        training: plain JSON about how it was trained, for reports; saved with it.

    Raises:
        ConfigError: parts that do not fit each other.
    """

    encoder: ImageEncoder
    head: Head
    actions: MinMax
    lowdim: LowDim
    config: ParametricConfig = field(default_factory=ParametricConfig)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        head, history = self.head, self.config.history
        self._sampler = FastSampler(self.head)
        expected = history * (self.encoder.feature_dim + self.lowdim.dim)
        if head.feature_dim != expected:
            raise ConfigError(
                f"the head takes {head.feature_dim} features, but {history} x ({self.encoder.feature_dim} of the image "
                f"+ {self.lowdim.dim} of proprioception and language) make {expected}."
            )
        if len(self.actions.low) != head.action_dim:
            raise ConfigError(
                f"the head makes actions of {head.action_dim} dimensions, their normalisation was fitted on "
                f"{len(self.actions.low)}."
            )
        if self.config.chunk_length > head.horizon:
            raise ConfigError(
                f"expected chunk_length (T_a) of at most the head's horizon T_p = {head.horizon}, got "
                f"{self.config.chunk_length}."
            )

    @property
    def name(self) -> str:
        """The head's name: ``diffusion`` or ``mlp``."""
        return head_name(self.head_config)

    @property
    def head_config(self) -> HeadConfig:
        """Settings of the head."""
        config: HeadConfig = self.head.config
        return config

    @property
    def needs_images(self) -> bool:
        """Always: the encoder reads a camera."""
        return True

    @property
    def cameras(self) -> tuple[str, ...]:
        """The views that the encoder reads."""
        return self.encoder.config.cameras

    @property
    def chunk_length(self) -> int:
        """T_a."""
        return self.config.chunk_length

    @property
    def history(self) -> int:
        """T_o."""
        return self.config.history

    @property
    def schema(self) -> Schema:
        """Of the demonstrations: what observations must hold and actions mean."""
        return self.lowdim.schema

    @property
    def action_space(self) -> ActionSpace | None:
        """What an action's dimensions mean, where that was declared."""
        return self.schema.actions

    def act(self, observations: Sequence[Moment]) -> FloatArray:
        """(B, T_a, D) unnormalised actions; 6-D rotations are orthonormal.

        Args:
            observations: of B environments; for T_o > 1 the last T_o observations of each, oldest first (at the start
                of an episode, repeat its first one, as in training).

        Raises:
            DataError: histories of another length, an observation that is not of the schema, or lacks a camera.
        """
        histories = as_histories(observations, self.history)
        if not histories:
            return np.zeros((0, self.config.chunk_length, self.head.action_dim), np.float32)
        features = self.features([observation for history in histories for observation in history])
        joined = torch.from_numpy(features.reshape(len(histories), -1)).to(self.encoder.mean.device)
        generators = [self._generator(history) for history in histories]
        chunks = self._sampler.sample(joined, generators).cpu().numpy()[:, : self.config.chunk_length]
        self._say_notes()
        self._say_range(chunks)
        actions = self.actions.invert(chunks)
        space = self.action_space
        return actions if space is None or not space.has_rotations else space.orthogonalize(actions)

    def prepare(self, batch: int = 1) -> None:
        """Choose kernels and record graphs now, so that the first decisions are as fast as the later ones.

        Args:
            batch: environments of each decision.
        """
        warm_up(self.encoder, batch * self.history, bf16=self.config.bf16)
        self._sampler.prepare(batch)
        self._say_notes()

    def _say_notes(self) -> None:
        for note in self._sampler.notes:
            if self._first(note):
                logger.warning("policy %r decides more slowly than it could: %s (said once).", self.name, note)

    def _first(self, subject: str) -> bool:
        """Whether this process has not said it yet of a policy of this name."""
        key = self.name, subject
        if key in _said:
            return False
        _said.add(key)
        return True

    def _say_range(self, chunks: FloatArray) -> None:
        beyond = np.abs(chunks) - 1.0
        if not (beyond > BEYOND).any() or not self._first("range"):
            return
        d = int(np.argmax(beyond.max(axis=(0, 1))))
        worst = self.actions.invert(chunks)[..., d]
        logger.warning(
            "policy %r gave actions outside those demonstrated: dimension %d from %.4g to %.4g, demonstrated were %.4g "
            "to %.4g. They are passed on as they are (said once).",
            self.name,
            d,
            worst.min(),
            worst.max(),
            self.actions.low[d],
            self.actions.high[d],
        )

    def features(self, observations: Sequence[Observation]) -> FloatArray:
        """(B, F + d) image features, normalised proprioception and language of single observations.

        Raises:
            DataError: an observation that is not of the schema, or lacks a camera.
        """
        cameras = self.encoder.config.cameras
        self.lowdim.check(observations, cameras)
        image = self.encoder.encode(stack_images(observations, cameras), bf16=self.config.bf16)
        return np.concatenate([image, self.lowdim.observations(observations)], axis=1)

    def _generator(self, history: Sequence[Observation]) -> torch.Generator:
        digest = hashlib.blake2b(self.config.seed.to_bytes(16, "little"), digest_size=8)
        for observation in history:
            for camera in self.encoder.config.cameras:
                digest.update(np.ascontiguousarray(observation.images[camera]).tobytes())
            digest.update(np.asarray(observation.proprioception, np.float32).tobytes())
            if observation.language is not None:
                digest.update(np.asarray(observation.language, np.float32).tobytes())
        # On the CPU whatever the policy runs on: the same noise on every device.
        return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)

    def to(self, device: str) -> ParametricPolicy:
        """Move the networks to a device, in place.

        Raises:
            ConfigError: an unknown device, or a GPU that torch does not see.
        """
        wanted = check_device(device)
        self.encoder.to(wanted)
        self.head.to(wanted)
        return self

    def save(self, folder: Path) -> None:
        """Write everything needed to act as one folder, sealed with checksums."""
        from safetensors.torch import save_file

        head = self.head
        card: dict[str, Any] = {
            "format": FORMAT,
            "config": asdict(self.config),
            "head": head_config_to_json(self.head_config),
            "shape": {"feature_dim": head.feature_dim, "action_dim": head.action_dim, "horizon": head.horizon},
            "actions": self.actions.to_json(),
            "lowdim": self.lowdim.to_json(),
            "training": dict(self.training),
        }

        def fill(path: Path) -> None:
            self.encoder.save_pretrained(path / "encoder")
            save_file({k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}, path / WEIGHTS)
            (path / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

        write_folder(Path(folder), fill)

    @staticmethod
    def load(folder: str | Path, *, device: str = "cpu", **overrides: Any) -> ParametricPolicy:
        """Read a folder written by :meth:`save`.

        Args:
            folder: the policy's folder.
            device: where to compute.
            overrides: fields of :class:`ParametricConfig` to change, such as ``seed=1``, and for a diffusion head
                ``scheduler`` and ``inference_steps``, which training does not depend on.

        Raises:
            CheckpointError: damaged or incomplete, or not a parametric policy.
            ConfigError: unknown overrides, values out of range, or a device that is not there.
            MissingDependencyError: the head needs a package that is not installed.
        """
        from safetensors.torch import load_file

        check_device(device)
        path = Path(folder)
        verify_folder(path)
        where = path / CARD
        card = read_json(where, CheckpointError)
        found = card.get("format") if isinstance(card, dict) else card
        if found != FORMAT:
            raise CheckpointError(f"{where}: expected format {FORMAT!r}, got {found!r}.")
        head_config = head_config_from_json(card.get("head"), where)
        sampling = {name: overrides.pop(name) for name in SAMPLING if name in overrides}
        if sampling:
            if not isinstance(head_config, DiffusionConfig):
                raise ConfigError(
                    f"{', '.join(sampling)}: settings of diffusion, but the head in {path} is "
                    f"{head_name(head_config)!r}."
                )
            head_config = replace(head_config, **sampling)
        config, shape = card.get("config"), card.get("shape")
        if not isinstance(config, dict) or set(config) != set(ParametricConfig.__dataclass_fields__):
            raise CheckpointError(f"{where}: unknown settings {config!r}: another version wrote it.")
        if not isinstance(shape, dict) or set(shape) != {"feature_dim", "action_dim", "horizon"}:
            raise CheckpointError(f"{where}: expected feature_dim, action_dim and horizon, got {shape!r}.")
        for name in overrides:
            if name not in config:
                raise UnknownNameError(choose("policy setting", name, (*config, *SAMPLING)))
        head = make_head(head_config, **shape)
        load_head_weights(head, load_file(path / WEIGHTS), path / WEIGHTS)
        policy = ParametricPolicy(
            ImageEncoder.from_pretrained(path / "encoder"),
            head,
            MinMax.from_json(card.get("actions")),
            LowDim.from_json(card.get("lowdim"), str(where)),
            ParametricConfig(**(config | overrides)),
            dict(card.get("training") or {}),
        )
        return policy.to(device)
