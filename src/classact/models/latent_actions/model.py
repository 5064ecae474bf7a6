"""A latent action model: which observations it reads, its networks, and the latent actions of demonstrations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from classact.data.images import resize_images
from classact.data.schema import Schema
from classact.data.types import Demonstrations, FloatArray, IntArray
from classact.data.windows import history_indices
from classact.errors import CheckpointError, ConfigError, DataError
from classact.models.latent_actions.config import IMAGE_SIZE, LatentActionConfig
from classact.models.latent_actions.decoder import ActionDecoder
from classact.models.latent_actions.networks import NETWORKS
from classact.models.latent_actions.quantize import Quantizer
from classact.models.weights import load_weights, seeded
from classact.utils.codec import from_json, to_json
from classact.utils.storage import read_json, verify_folder, write_folder, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = "classact-latent-actions-1"
LEAST_SPREAD = 1e-6  # of a number that is standardised; one that hardly changes is only centred
BATCH = 1024


class Dynamics(nn.Module):
    """Inverse and forward dynamics, and the codebook between them where there is one.

    Attributes:
        size: O, numbers of an observation; 0 for images.
        change: (O,) standard deviations of their changes from step to step; None where they are not seen as such.
    """

    change: Tensor | None

    def __init__(self, config: LatentActionConfig, size: int, *, seed: int = 0) -> None:
        super().__init__()
        self.config, self.size = config, size
        inverse, forward = NETWORKS[config.network]
        with seeded(seed):
            self.inverse, self.forward_dynamics = inverse(config, size), forward(config, size)
            self.quantizer = Quantizer(config.codes, config.latent_dim) if config.codes else None
        self.register_buffer("change", torch.ones(size) if config.changes and size else None)

    def seen(self, observations: Tensor) -> Tensor:
        """(B, C or C + 1, *O) as the networks see it: o_t itself, all others as changes from the one before them, or
        to the one behind them.
        """
        if self.change is None:
            return observations
        now, moves = self.config.context - 1, observations.diff(dim=1) / self.change
        return torch.cat([moves[:, :now], observations[:, now : now + 1], moves[:, now:]], dim=1)

    def raw(self, observations: Tensor) -> Tensor:
        """:meth:`infer` without the codebook."""
        z: Tensor = self.inverse(self.seen(observations))
        return z

    def infer(self, observations: Tensor) -> Tensor:
        """(B, C + 1, *O) o_{t-C+1..t+1} -> z_t (B, Z), quantised where there is a codebook."""
        z = self.raw(observations)
        return z if self.quantizer is None else self.quantizer(z)[0]

    def predict(self, context: Tensor, z: Tensor) -> Tensor:
        """(B, C, *O) o_{t-C+1..t} and z_t -> o_{t+1} (B, *O)."""
        predicted: Tensor = self.forward_dynamics(self.seen(context), z)
        return predicted if self.change is None else context[:, -1] + self.change * predicted

    def error(self, predicted: Tensor, following: Tensor) -> Tensor:
        """Mean squared error of predicted observations; of changes in their standard deviations."""
        away = predicted - following
        return ((away if self.change is None else away / self.change) ** 2).mean()

    def extra_repr(self) -> str:
        """What it is, for error messages."""
        return f"{self.config.network!r}, {self.size} numbers, {self.config.latent_dim} latent dimensions"


def as_inputs(seen: Tensor) -> Tensor:
    """What networks take: pixels from 0 to 1, numbers as they are."""
    return seen.float() / 255 if seen.dtype == torch.uint8 else seen


def around(episode_ends: IntArray, context: int) -> IntArray:
    """(N, C + 1) the steps t-C+1..t of each step t, clamped to its episode, and t + 1; of the data's last step, t."""
    steps = np.arange(int(episode_ends[-1]), dtype=np.int64)
    following = np.minimum(steps + 1, len(steps) - 1)
    return np.concatenate([history_indices(episode_ends, context), following[:, None]], axis=1)


def transitions(episode_ends: IntArray) -> IntArray:
    """The steps t of all episodes that have a step t + 1: a_t takes o_t to o_{t+1}."""
    steps = np.arange(int(episode_ends[-1]), dtype=np.int64)
    return np.setdiff1d(steps, np.asarray(episode_ends) - 1)


def check_lengths(data: Demonstrations) -> None:
    """Refuse (DataError) an episode of one step."""
    if (data.lengths < 2).any():
        e = int(np.argmax(data.lengths < 2))
        raise DataError(
            f"{data.name} ({data.source}): episode {e} has one step. A latent action leads from one observation to "
            f"the next: leave it out (--episodes)."
        )


@dataclass(frozen=True)
class LatentActionMetadata:
    """config.json of a saved model."""

    format: str
    config: LatentActionConfig
    schema: Schema
    center: tuple[float, ...]
    scale: tuple[float, ...]
    training: dict[str, Any]


@dataclass(eq=False)
class LatentActionModel:
    """Networks, with the observations that they were trained on.

    Args:
        dynamics: inverse and forward dynamics.
        decoder: of latent actions.
        schema: of the demonstrations.
        center, scale: (O,) of the numbers observed; empty for images.
        training: plain JSON about how it was trained.
    """

    dynamics: Dynamics
    decoder: ActionDecoder
    schema: Schema
    center: FloatArray
    scale: FloatArray
    training: dict[str, Any]

    @staticmethod
    def start(
        config: LatentActionConfig, data: Demonstrations, decoder: ActionDecoder, *, seed: int = 0
    ) -> LatentActionModel:
        """Initial weights, and the standardisation of all observations.

        Raises:
            ConfigError: the data have no such camera, keys, or no numbers at all.
        """
        center = scale = np.zeros(0, np.float32)
        if config.camera is not None:
            if config.camera not in data.images:
                raise ConfigError(
                    f"{data.name} ({data.source}) has no images of camera {config.camera!r}, there are "
                    f"{sorted(data.images) or 'none'}. Name one of them, or observe numbers (network 'mlp')."
                )
        else:
            numbers = data.proprioception[:, data.schema.columns(config.keys)]
            if not numbers.shape[1]:
                raise ConfigError(
                    f"{data.name} ({data.source}) has no numbers to observe. Observe a camera (network 'cnn')."
                )
            center, scale = np.zeros(numbers.shape[1], np.float32), np.ones(numbers.shape[1], np.float32)
            if config.standardize:
                center, spread = numbers.mean(0, dtype=np.float64), numbers.std(0, dtype=np.float64)
                scale = np.where(spread > LEAST_SPREAD, spread, 1.0).astype(np.float32)
                center = center.astype(np.float32)
        dynamics = Dynamics(config, len(center), seed=seed)
        made = LatentActionModel(dynamics, decoder, data.schema, center, scale, {})
        if dynamics.change is not None:
            seen, rows = made.observations(data), transitions(data.episode_ends)
            spread = (seen[rows + 1] - seen[rows]).std(0, dtype=np.float64)
            change = np.where(spread > LEAST_SPREAD, spread, 1.0).astype(np.float32)
            dynamics.change.copy_(torch.from_numpy(change))
        return made

    @property
    def config(self) -> LatentActionConfig:
        """Settings."""
        return self.dynamics.config

    @property
    def keys(self) -> tuple[str, ...]:
        """Proprioception that is observed."""
        if self.config.camera is not None:
            return ()
        return self.schema.keys if self.config.keys is None else self.config.keys

    def check(self, schema: Schema, where: str) -> None:
        """Raise a DataError where numbers are missing or of another size, or steps are of another length."""
        sizes, found = dict(self.schema.proprioception), dict(schema.proprioception)
        for key in self.keys:
            if sizes[key] != found.get(key):
                raise DataError(
                    f"{where} has proprioception {key!r} of size {found.get(key, 'none')}, the latent action model was "
                    f"trained on {sizes[key]} numbers of it. Use data of the same robot."
                )
        own, other = self.schema.fps, schema.fps
        if own is not None and other is not None and own != other:
            raise DataError(
                f"{where} has {other:g} steps per second, the latent action model was trained on {own:g}: its actions "
                f"lead over steps of another length. Read both at one rate (--fps)."
            )

    def observations(self, data: Demonstrations) -> NDArray[Any]:
        """(N, *O) what is observed at each step: standardised float32 numbers, or pixels (3, 64, 64) as uint8.

        Raises:
            DataError: data of another schema.
        """
        self.check(data.schema, f"{data.name} ({data.source})")
        if self.config.camera is not None:
            if self.config.camera not in data.images:
                there = ", ".join(data.images) or "none"
                raise DataError(
                    f"{data.name} ({data.source}): the latent action model sees camera {self.config.camera!r}, which "
                    f"is not among those at hand ({there}). Let the encoder see it (--cameras)."
                )
            images = data.images[self.config.camera]
            seen = np.empty((data.num_steps, 3, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
            for first in range(0, len(seen), BATCH):  # recorded ones are large, and may be read from a file
                block = np.asarray(images[first : first + BATCH])
                if block.shape[1:3] != (IMAGE_SIZE, IMAGE_SIZE):
                    block = resize_images(block, IMAGE_SIZE)
                seen[first : first + BATCH] = block.transpose(0, 3, 1, 2)
            return seen
        numbers = data.proprioception[:, data.schema.columns(self.keys)]
        return np.asarray((numbers - self.center) / self.scale, np.float32)

    @torch.inference_mode()
    def infer(self, data: Demonstrations) -> FloatArray:
        """(N, Z) latent actions of all steps; an episode's last step, which leads nowhere, has those of the one before.

        Raises:
            DataError: data of another schema, or an episode of one step.
        """
        check_lengths(data)
        seen = self.observations(data)
        steps = around(data.episode_ends, self.config.context)
        z = np.zeros((data.num_steps, self.config.latent_dim), np.float32)
        rows = transitions(data.episode_ends)
        self.dynamics.eval()
        device = next(self.dynamics.parameters()).device
        for first in range(0, len(rows), BATCH):
            some = rows[first : first + BATCH]
            z[some] = self.dynamics.infer(as_inputs(torch.from_numpy(seen[steps[some]]).to(device))).cpu().numpy()
        last = np.asarray(data.episode_ends) - 1
        z[last] = z[last - 1]
        return z

    def relabel(self, data: Demonstrations) -> Demonstrations:
        """The demonstrations with latent actions in the place of actions."""
        schema = replace(data.schema, actions=None)  # each dimension is a number by itself
        return replace(data, actions=self.infer(data), schema=schema, labelled=None)

    def save(self, folder: Path) -> None:
        """Write everything as one checksummed folder; the decoder is a folder in it."""
        from safetensors.torch import save_file

        metadata = LatentActionMetadata(
            FORMAT,
            self.config,
            self.schema,
            tuple(map(float, self.center)),
            tuple(map(float, self.scale)),
            self.training,
        )

        def fill(path: Path) -> None:
            state = self.dynamics.state_dict()
            save_file({k: v.detach().cpu().contiguous() for k, v in state.items()}, path / WEIGHTS)
            write_json(path / CONFIG, to_json(metadata))
            self.decoder.save(path / "decoder")

        write_folder(Path(folder), fill)

    @staticmethod
    def load(folder: str | Path) -> LatentActionModel:
        """Read what :meth:`save` wrote, in eval mode.

        Raises:
            CheckpointError: damaged, incomplete, or no latent action model.
        """
        from safetensors.torch import load_file

        path = Path(folder)
        verify_folder(path)
        value = read_json(path / CONFIG, CheckpointError)
        found = value.get("format") if isinstance(value, dict) else value
        if found != FORMAT:
            raise CheckpointError(f"{path} is no latent action model: {CONFIG} is of format {found!r}.")
        read = from_json(LatentActionMetadata, value, str(path / CONFIG), error=CheckpointError)
        dynamics = Dynamics(read.config, len(read.center))
        load_weights(dynamics, load_file(path / WEIGHTS), path / WEIGHTS)
        center, scale = np.array(read.center, np.float32), np.array(read.scale, np.float32)
        decoder = ActionDecoder.load(path / "decoder")
        return LatentActionModel(
            dynamics.requires_grad_(False).eval(), decoder, read.schema, center, scale, read.training
        )
