"""Acting by a learned head: features of an observation in, a chunk of actions out (paper 4.4, "parametric")."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classact.data.actions import ActionSpace
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.data.types import FloatArray, Observation
from classact.errors import ConfigError
from classact.models.encoders.image import ImageEncoder
from classact.models.heads.base import Head, make_head
from classact.models.heads.config import HeadConfig
from classact.models.latent_actions.decoder import ActionDecoder
from classact.models.weights import load_weights
from classact.policies.base import Decision, PolicySpec, Timestep, as_histories
from classact.policies.config import ControlConfig, ParametricConfig
from classact.policies.folder import read_metadata, with_overrides, write_policy
from classact.policies.latents import stack_images, warm_up
from classact.policies.published import Published
from classact.policies.speed import check_reach, played, reach
from classact.utils.codec import ADDED
from classact.utils.machine import check_device

logger = logging.getLogger(__name__)

FORMAT = "classact-parametric-3"
WEIGHTS, DECODER = "head.safetensors", "decoder"
BEYOND = 0.05
"""Share of half the demonstrated range by which actions may leave it without a word: networks overshoot a little."""

_said: set[str] = set()
"""Policies that this process has warned of: a training makes a new policy for each of its evaluations."""


@dataclass(frozen=True)
class HeadShape:
    """Sizes of a head: features, action dimensions, actions of a chunk."""

    feature_dim: int
    action_dim: int
    horizon: int


@dataclass(frozen=True)
class ParametricMetadata:
    """What policy.json of a parametric policy holds.

    Attributes:
        format: :data:`FORMAT`.
        config: settings of acting.
        head: settings of the head.
        shape: sizes of the head.
        actions, lowdim: normalisations.
        training: how it was trained, for reports.
        control: how its chunks are executed.
    """

    format: str
    config: ParametricConfig
    head: HeadConfig
    shape: HeadShape
    actions: MinMax
    lowdim: LowDim
    training: dict[str, Any]
    control: ControlConfig = field(default_factory=ControlConfig, metadata=ADDED)


@dataclass(eq=False)
class ParametricPolicy(Published):
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
        decoder: of a head that has learned latent actions: what turns them into the robot's.
        control: how its chunks are executed.

    Raises:
        ConfigError: parts that do not fit each other.
    """

    encoder: ImageEncoder
    head: Head
    actions: MinMax
    lowdim: LowDim
    config: ParametricConfig = field(default_factory=ParametricConfig)
    training: Mapping[str, Any] = field(default_factory=dict)
    decoder: ActionDecoder | None = None
    control: ControlConfig = field(default_factory=ControlConfig)

    def __post_init__(self) -> None:
        head, history = self.head, self.config.history
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
        if self.decoder is not None and self.decoder.latent_dim != head.action_dim:
            raise ConfigError(
                f"the head makes latent actions of {head.action_dim} dimensions, the decoder takes "
                f"{self.decoder.latent_dim}."
            )
        if self.config.chunk_length > head.horizon:
            raise ConfigError(
                f"expected chunk_length (T_a) of at most the head's horizon T_p = {head.horizon}, got "
                f"{self.config.chunk_length}."
            )
        check_reach(self.config.chunk_length, self.config.speed, head.horizon)

    @property
    def spec(self) -> PolicySpec:
        """Named after its head."""
        return PolicySpec(
            name=self.head.config.name,
            chunk_length=self.config.chunk_length,
            cameras=self.encoder.config.cameras,
            history=self.config.history,
            schema=self.lowdim.schema,
            action_space=self.action_space,
            speed=self.config.speed,
            language_source=self.lowdim.language_source,
            control=self.control,
            acting={"seed": self.config.seed, "bf16": self.config.bf16} | self.head.config.acting_settings(),
        )

    @property
    def action_space(self) -> ActionSpace | None:
        """What the executed actions mean."""
        return self.lowdim.schema.actions if self.decoder is None else self.decoder.space

    @property
    def image_encoder(self) -> ImageEncoder:
        """Its encoder."""
        return self.encoder

    def decide(self, observations: Sequence[Timestep]) -> Decision:
        """Chunks (B, T_a, D) at the policy's speed; 6-D rotations are orthonormal.

        Args:
            observations: of B environments; for T_o > 1 the last T_o observations of each, oldest first (at the start
                of an episode, repeat its first one, as in training).

        Raises:
            DataError: histories of another length, an observation that is not of the schema, or lacks a camera.
        """
        histories = as_histories(observations, self.config.history)
        if not histories:
            found = self.actions if self.decoder is None else self.decoder.actions
            return Decision(np.zeros((0, self.config.chunk_length, len(found.low)), np.float32))
        return self.decide_from(self.features([one for history in histories for one in history]), histories)

    def decide_from(self, features: FloatArray, histories: Sequence[Sequence[Observation]]) -> Decision:
        """:meth:`decide`, from the (B T_o, F + D_p) features of all observations."""
        joined = torch.from_numpy(features.reshape(len(histories), -1)).to(self.encoder.mean.device)
        generators = [self._generator(history) for history in histories]
        length, speed = self.config.chunk_length, self.config.speed
        chunks = self.head.sample(joined, generators).cpu().numpy()[:, : reach(length, speed)]
        actions, space = self.actions.invert(chunks), self.action_space
        if self.decoder is not None:
            actions = self.decoder.decode(actions)
        else:
            self._say_range(chunks)
            if space is not None and space.has_rotations:
                actions = space.orthogonalize(actions)
        return Decision(played(actions, speed, length, space))

    def prepare(self, batch: int = 1) -> None:
        """Choose kernels, and on a GPU compile the head, which takes up to a minute.

        Args:
            batch: environments of each decision.
        """
        warm_up(self.encoder, batch * self.config.history, bf16=self.config.bf16)
        device = self.encoder.mean.device
        features = torch.zeros(batch, self.head.feature_dim, device=device)
        if device.type != "cuda":
            self.head.sample(features, torch.Generator())
            return
        self.head.accelerate()
        # Where it cannot be compiled (there is no compiler, say), torch warns, and the head acts as it is.
        with torch._dynamo.config.patch(suppress_errors=True):
            self.head.sample(features, torch.Generator())

    def _say_range(self, chunks: FloatArray) -> None:
        beyond = np.abs(chunks) - 1.0
        if not (beyond > BEYOND).any() or self.spec.name in _said:
            return
        _said.add(self.spec.name)
        d = int(np.argmax(beyond.max(axis=(0, 1))))
        worst = self.actions.invert(chunks)[..., d]
        logger.warning(
            "policy %r gave actions outside those demonstrated: dimension %d from %.4g to %.4g, demonstrated were %.4g "
            "to %.4g. They are passed on as they are (said once).",
            self.spec.name,
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
        images = stack_images(observations, cameras)
        image = self.encoder.encode(images, bf16=self.config.bf16, count=len(observations))
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
        if self.decoder is not None:
            self.decoder.to(wanted)
        return self

    def save(self, folder: Path) -> None:
        """Write everything needed to act as one folder, with checksums."""
        from safetensors.torch import save_file

        head = self.head
        metadata = ParametricMetadata(
            FORMAT,
            self.config,
            head.config,
            HeadShape(head.feature_dim, head.action_dim, head.horizon),
            self.actions,
            self.lowdim,
            dict(self.training),
            self.control,
        )

        def fill(path: Path) -> None:
            self.encoder.save_pretrained(path / "encoder")
            save_file({k: v.detach().cpu().contiguous() for k, v in head.state_dict().items()}, path / WEIGHTS)
            if self.decoder is not None:
                self.decoder.save(path / DECODER)

        write_policy(folder, metadata, fill)

    @staticmethod
    def load(folder: str | Path, *, device: str = "cpu", **overrides: Any) -> ParametricPolicy:
        """Read a folder written by :meth:`save`.

        Args:
            folder: the policy's folder.
            device: where to compute.
            overrides: fields of :class:`ParametricConfig` to change, such as ``seed=1``, and of the head's settings
                those that training does not depend on (``acting``), such as ``scheduler`` of a diffusion head.

        Raises:
            CheckpointError: damaged or incomplete, or not a parametric policy.
            ConfigError: unknown overrides, values out of range, or a device that is not there.
            MissingDependencyError: the head needs a package that is not installed.
        """
        from safetensors.torch import load_file

        check_device(device)
        path = Path(folder)
        metadata = read_metadata(ParametricMetadata, path, FORMAT)
        of_policy = {name: value for name, value in overrides.items() if name not in metadata.head.acting}
        config = with_overrides(metadata.config, of_policy, "policy setting", metadata.head.acting)
        shape = metadata.shape
        head = make_head(
            metadata.head.with_acting({name: overrides[name] for name in overrides.keys() - of_policy.keys()}),
            shape.feature_dim,
            shape.action_dim,
            shape.horizon,
        )
        load_weights(head, load_file(path / WEIGHTS), path / WEIGHTS)
        encoder = ImageEncoder.from_pretrained(path / "encoder")
        decoder = ActionDecoder.load(path / DECODER) if (path / DECODER).is_dir() else None
        parts = (encoder, head, metadata.actions, metadata.lowdim)
        return ParametricPolicy(*parts, config, metadata.training, decoder, metadata.control).to(device)
