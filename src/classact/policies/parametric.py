"""Acting by a learned head: features of an observation in, a chunk of actions out (paper 4.4, "parametric")."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classact.encoders import ImageEncoder
from classact.errors import CheckpointError, ConfigError, DataError, choose
from classact.heads import (
    DiffusionConfig,
    Head,
    HeadConfig,
    head_config_from_json,
    head_config_to_json,
    head_name,
    load_head_weights,
    make_head,
)
from classact.normalize import MinMax
from classact.storage import read_json, verify_folder, write_folder
from classact.types import FloatArray, Observation

FORMAT = "classact-parametric-1"
WEIGHTS = "head.safetensors"
CARD = "policy.json"
SAMPLING = ("scheduler", "inference_steps")
"""Settings of diffusion that may be changed after training."""


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
        proprioception: normalisation of proprioception, fitted on the demonstrations.
        config: settings.
        training: plain JSON about how it was trained, for reports; saved with it.

    Raises:
        ConfigError: parts that do not fit each other.
    """

    encoder: ImageEncoder
    head: Head
    actions: MinMax
    proprioception: MinMax
    config: ParametricConfig = field(default_factory=ParametricConfig)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        head, history = self.head, self.config.history
        expected = history * (self.encoder.feature_dim + len(self.proprioception.low))
        if head.feature_dim != expected:
            raise ConfigError(
                f"the head takes {head.feature_dim} features, but {history} x ({self.encoder.feature_dim} of the image "
                f"+ {len(self.proprioception.low)} of proprioception) make {expected}."
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
    def chunk_length(self) -> int:
        """T_a."""
        return self.config.chunk_length

    def act(self, observations: Sequence[Observation]) -> FloatArray:
        """(B, T_a, D) unnormalised actions.

        Raises:
            ConfigError: the policy decides from more than one observation: use :meth:`act_on_histories`.
            DataError: an observation without the encoder's camera, or of other proprioception than was trained on.
        """
        if self.config.history != 1:
            raise ConfigError(
                f"this policy decides from the last {self.config.history} observations, and keeps none itself: call "
                f"act_on_histories with them."
            )
        return self.act_on_histories([[observation] for observation in observations])

    def act_on_histories(self, histories: Sequence[Sequence[Observation]]) -> FloatArray:
        """(B, T_a, D) unnormalised actions from the last T_o observations of each environment, oldest first.

        At the start of an episode, repeat its first observation, as in training.
        """
        for history in histories:
            if len(history) != self.config.history:
                raise ConfigError(f"expected histories of {self.config.history} observations, got {len(history)}.")
        if not histories:
            return np.zeros((0, self.config.chunk_length, self.head.action_dim), np.float32)
        features = self.features([observation for history in histories for observation in history])
        joined = torch.from_numpy(features.reshape(len(histories), -1)).to(self.encoder.mean.device)
        generators = [self._generator(history) for history in histories]
        chunks = self.head.sample(joined, generators).cpu().numpy()
        return self.actions.invert(chunks[:, : self.config.chunk_length])

    def features(self, observations: Sequence[Observation]) -> FloatArray:
        """(B, F + D_p) image features and normalised proprioception of single observations."""
        camera = self.encoder.config.camera
        for observation in observations:
            if camera not in observation.images:
                raise DataError(
                    f"the encoder reads camera {camera!r}, but an observation holds "
                    f"{sorted(observation.images) or 'no images'}. Observe with rendering, in a simulator that has "
                    f"this camera."
                )
        image = self.encoder.encode(np.stack([o.images[camera] for o in observations]), bf16=self.config.bf16)
        proprioception = self.proprioception.apply(np.stack([o.proprioception for o in observations]))
        return np.concatenate([image, proprioception], axis=1)

    def _generator(self, history: Sequence[Observation]) -> torch.Generator:
        digest = hashlib.blake2b(self.config.seed.to_bytes(16, "little"), digest_size=8)
        for observation in history:
            digest.update(np.ascontiguousarray(observation.images[self.encoder.config.camera]).tobytes())
            digest.update(np.asarray(observation.proprioception, np.float32).tobytes())
        # On the CPU whatever the policy runs on: the same noise on every device.
        return torch.Generator().manual_seed(int.from_bytes(digest.digest(), "little") >> 1)

    def to(self, device: str) -> ParametricPolicy:
        """Move the networks to a device, in place."""
        self.encoder.to(device)
        self.head.to(device)
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
            "proprioception": self.proprioception.to_json(),
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
            ConfigError: unknown overrides, or values out of range.
            MissingDependencyError: the head needs a package that is not installed.
        """
        from safetensors.torch import load_file

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
                raise ConfigError(choose("policy setting", name, (*config, *SAMPLING)))
        head = make_head(head_config, **shape)
        load_head_weights(head, load_file(path / WEIGHTS), path / WEIGHTS)
        policy = ParametricPolicy(
            ImageEncoder.from_pretrained(path / "encoder"),
            head,
            MinMax.from_json(card.get("actions")),
            MinMax.from_json(card.get("proprioception")),
            ParametricConfig(**(config | overrides)),
            dict(card.get("training") or {}),
        )
        return policy.to(device)
