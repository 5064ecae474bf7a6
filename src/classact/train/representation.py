"""Representation learning (paper sections 4.2, 4.3, 5.2, C.1) with any objective: the steps of
:mod:`classact.train.engine`'s loop.

Every random draw is a function of (seed, step), so a resumed run ends with the same bits as an uninterrupted one, and
there is no generator state to save.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classact.data.images import Images, is_decoded
from classact.data.types import Demonstrations, IntArray
from classact.errors import ClassactError, DataError, choose
from classact.models.average import update_ema
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.objectives import NoneConfig, make_objective
from classact.objectives.base import Material
from classact.similarity import ActionSimilarity, similarity_identity, window_stream
from classact.similarity.distribution import DistanceDistribution, read_distribution
from classact.similarity.model import naming
from classact.train.augment import Part, augment
from classact.train.batches import epoch_batches
from classact.train.config import INCIDENTAL, AugmentConfig, EngineConfig, PretrainConfig
from classact.train.engine import Batch, Stats, Training, check_engine, spelled_out, use_bfloat16
from classact.train.optim import make_optimizer
from classact.utils.codec import to_json, without

_COMPANIONS = 2  # third word of the seeds of what is drawn to go with anchors: (seed, step) alone seeds views
logger = logging.getLogger(__name__)


def encoder_images(demonstrations: Demonstrations, config: EncoderConfig) -> dict[str, Images]:
    """Camera -> (N, S, S, 3) uint8: the images that an encoder is trained on, in its order of cameras."""
    size = config.image_size
    chosen: dict[str, Images] = {}
    for camera in config.cameras:
        if camera not in demonstrations.images:
            raise DataError(choose("camera", camera, demonstrations.images) + f" in {demonstrations.name}.")
        images = demonstrations.images[camera]
        if not is_decoded(images) or images.shape[1:3] != (size, size):
            found = f"{images.shape[1]} x {images.shape[2]}{', not decoded yet,' * (not is_decoded(images))}"
            raise DataError(
                f"{demonstrations.name}: expected images of {size} x {size} pixels for this encoder, got {found} of "
                f"camera {camera!r}; prepare them with classact.run.frames."
            )
        chosen[camera] = images
    return chosen


def random_views(
    images: Batch, encoder: EncoderConfig, config: AugmentConfig, generator: torch.Generator, part: Part
) -> torch.Tensor:
    """(B, V, 3, crop, crop) pixels: one random view of each camera's image, cameras drawn independently."""
    views = [augment(images[camera], encoder.crop_size, config, generator, part) for camera in encoder.cameras]
    return views[0][:, None] if len(views) == 1 else torch.stack(views, dim=1)


def is_compiled(engine: EngineConfig, device: torch.device) -> bool:
    """Whether encoders run through torch.compile."""
    return engine.compile == "yes" or (engine.compile == "auto" and device.type == "cuda")


def memory_format(engine: EngineConfig, device: torch.device) -> torch.memory_format:
    """How images and convolutions are laid out."""
    last = engine.channels_last == "yes" or (engine.channels_last == "auto" and device.type == "cuda")
    return torch.channels_last if last else torch.contiguous_format


class EncoderPass:
    """An encoder as training runs it: compiled and channels-last where the engine says so, as are its averaged weights,
    so that averaging walks both in memory order.

    An error in the first compiled call counts as a failure to compile: under "auto" the encoder then runs uncompiled,
    with a warning.
    """

    def __init__(self, encoder: ImageEncoder, engine: EngineConfig, *, bf16: bool, average: ImageEncoder) -> None:
        device = encoder.mean.device
        self.encoder, self.bf16, self.format = encoder, bf16, memory_format(engine, device)
        if self.format == torch.channels_last:
            encoder.views.to(memory_format=torch.channels_last)
            average.views.to(memory_format=torch.channels_last)
        self.run: Callable[..., torch.Tensor] = encoder
        self.compile, self._untried = engine.compile, is_compiled(engine, device)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, V, 3, crop, crop) pixels 0..255 -> (B, V F)."""
        inputs = self.inputs(pixels)
        return self._compiled(inputs) if self._untried else self.run(inputs, bf16=self.bf16)

    def inputs(self, pixels: torch.Tensor) -> torch.Tensor:
        """Normalised, in the network's memory format."""
        inputs = self.encoder.normalize(pixels)
        if self.format == torch.channels_last:
            flat = inputs.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            inputs = flat.reshape(*inputs.shape[:2], *flat.shape[1:])
        return inputs

    def _compiled(self, inputs: torch.Tensor) -> torch.Tensor:
        try:
            run: Callable[..., torch.Tensor] = torch.compile(self.encoder)
            features = run(inputs, bf16=self.bf16)
        except (torch.OutOfMemoryError, ClassactError):
            raise
        except Exception as error:
            inner = getattr(error, "inner_exception", error)  # the compiler's own, where torch names it
            lines = str(inner).strip().splitlines()
            what = f"{type(inner).__name__}: {lines[0]}" if lines else type(inner).__name__
            if self.compile == "yes":
                raise ClassactError(f"torch.compile failed ({what}). Train with --compile no.") from error
            logger.warning("torch.compile failed (%s): the encoder runs uncompiled, slower but alike.", what)
            self._untried = False
            return self.run(inputs, bf16=self.bf16)
        self.run, self._untried = run, False
        return features


def _measured(data: Demonstrations, config: PretrainConfig, folder: Path | None) -> DistanceDistribution | None:
    """Threshold and CDF that ``classact similarity`` wrote into ``folder``, if any."""
    if folder is None:
        return None
    identity = similarity_identity(window_stream(data, config.similarity), config.similarity)
    return read_distribution(folder / "distribution", identity)


def check_training(data: Demonstrations, config: PretrainConfig, similarity_folder: Path | None = None) -> int:
    """Refuse early, without images, what :class:`Trainer` would refuse: impossible settings, another similarity,
    missing packages or initial weights. Returns the number of the encoder's features.
    """
    features = ImageEncoder(config.encoder, seed=config.seed).feature_dim
    if isinstance(config.objective, NoneConfig):
        return features
    actions = torch.from_numpy(data.action_range().apply(data.actions))
    unmeasured = lambda steps, anchors: torch.zeros(anchors, len(steps))  # noqa: E731
    make_objective(config.objective, Material(features, data.episode_ends, actions, config.seed, weights=unmeasured))
    if config.objective.needs_similarity:
        with naming(data):
            window_stream(data, config.similarity)
            _measured(data, config, similarity_folder)
    return features


@dataclass(eq=False)
class Trainer(Training):
    """One training of a representation.

    Args:
        similarity_folder: written by ``classact similarity`` for the same data and settings; its threshold and CDF are
            reused.
        progress: called with (pairs done, pairs in all, status) while the similarity is measured.
        renderings: the demonstrations are so many times the same ones, rendered anew; batches have the same steps of
            all.
    """

    config: PretrainConfig
    similarity_folder: Path | None = None
    progress: Callable[[int, int, str], None] | None = None
    renderings: int = 1

    def __post_init__(self) -> None:
        config, data = self.config, self.demonstrations
        check_engine(self.engine, self.ranks, config.batch_size, data.num_steps)
        images = encoder_images(data, config.encoder)
        device = torch.device(self.device)
        self.bf16 = use_bfloat16(config.precision, device)
        self.similarity: ActionSimilarity | None = None
        self.encoder = ImageEncoder(config.encoder, seed=config.seed).to(device)
        self.average = copy.deepcopy(self.encoder).requires_grad_(False)
        self._encode = EncoderPass(self.encoder, self.engine, bf16=self.bf16, average=self.average)
        self.objective = make_objective(
            config.objective,
            Material(
                feature_dim=self.encoder.feature_dim,
                episode_ends=data.episode_ends,
                actions=torch.from_numpy(data.action_range().apply(data.actions)).to(device),
                seed=config.seed,
                device=device,
                weights=self._weights,
            ),
        ).to(device)
        # Once the settings are known to be possible: this may take a while.
        if self.config.objective.needs_similarity:
            with naming(data):
                distribution = _measured(data, config, self.similarity_folder)
                self.similarity = ActionSimilarity(
                    data, config.similarity, device=self.device, distribution=distribution, progress=self.progress
                )
        networks: dict[str, torch.nn.Module] = {"encoder": self.encoder}
        if self.objective.state_dict():
            networks["objective"] = self.objective
        if self.config.objective.target_decay is not None:
            self.target = copy.deepcopy(self.encoder).requires_grad_(False)
            self._encode_target = EncoderPass(self.target, self.engine, bf16=self.bf16, average=self.target)
            networks["target"] = self.target
        self.start(
            networks=networks,
            averages={"encoder": self.average},
            optimizer=make_optimizer(self.trained, config.optimizer),
            schedule=config.optimizer,
            images=images,
        )

    def batches(self, first_step: int) -> Iterator[IntArray]:
        """Anchors, and the context frames that the objective draws for them."""
        data, config = self.demonstrations, self.config
        times, weights = self.renderings, data.weights()
        n, size = data.num_steps // times, config.batch_size // times
        steps = epoch_batches(n, size, config.seed, first_step, None if weights is None else weights[:n])
        every = ((rows[:, None] + n * np.arange(times)).ravel() for rows in steps)
        for step, anchors in enumerate(every, first_step):
            if self.config.objective.companions:
                drawn = self.objective.draw(anchors, np.random.default_rng([self.config.seed, step, _COMPANIONS]))
                yield np.concatenate([anchors[:, None], drawn], axis=1)
            else:
                yield anchors

    def _weights(self, steps: IntArray, anchors: int) -> torch.Tensor:
        """(B, C) soft positive weights of the first B of ``steps`` (C,), on the training device."""
        assert self.similarity is not None
        return self.similarity.weights_tensor(steps, anchors)

    def images_per_row(self) -> int:
        """Views of all images of a row, of each camera."""
        return len(self.config.encoder.cameras) * (1 + self.config.objective.companions) * self.config.objective.views

    def gradients(self, rows: IntArray, part: slice, images: Batch, generator: torch.Generator) -> Stats:
        """The objective's loss over the whole batch."""
        objective, config = self.objective, self.config
        rows = rows.reshape(len(rows), -1)
        B, M, R = *rows.shape, objective.config.views
        pixels = self._views(images, part, (B, M, R), generator)
        own = slice(part.start * M * R, part.stop * M * R)
        pieces = pixels.tensor_split(self.engine.accumulate)
        with torch.set_grad_enabled(len(pieces) == 1):
            live = [self._encode(piece) for piece in pieces]
        # The loss needs the features of all ranks; the gradient of its own part goes back through each rank's network.
        z = features = self.ranks.gather(torch.cat(live)).requires_grad_()
        if config.augment.feature_noise:
            noise = torch.randn(features.shape, generator=generator, device=z.device)
            features = features + config.augment.feature_noise * noise
        target = None
        if objective.config.target_decay is not None:
            with torch.no_grad():
                local = torch.cat([self._encode_target(piece) for piece in pieces])
            target = self.ranks.gather(local).view(B, M, R, -1)
        loss, stats = objective.loss(features.view(B, M, R, -1), rows, target=target, generator=generator)
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in objective.parameters():
            if parameter.grad is not None:
                # Each rank has the full gradient, and those of all ranks are summed.
                parameter.grad.div_(self.ranks.world)
        assert z.grad is not None
        gradient = z.grad[own]
        if len(pieces) == 1:
            live[0].backward(gradient)  # type: ignore[no-untyped-call]
        else:
            for piece, part_of_it in zip(pieces, gradient.tensor_split(len(pieces)), strict=True):
                self._encode(piece).backward(part_of_it)  # type: ignore[no-untyped-call]
        return {"loss": loss.detach(), **stats}

    def _views(
        self, images: Batch, part: slice, shape: tuple[int, int, int], generator: torch.Generator
    ) -> torch.Tensor:
        """(P M R, V, 3, crop, crop) pixels of this rank's P rows: R random views of each of their M images."""
        encoder, config = self.config.encoder, self.config.augment
        B, M, R = shape
        views = []
        for _ in range(R):
            if M == 1 or not self.config.objective.together:
                whole = Part(slice(part.start * M, part.stop * M), B * M)
                views.append(random_views(images, encoder, config, generator, whole))
                continue
            # The same draws for each image of a row.
            state, frames = generator.get_state(), []
            for m in range(M):
                generator.set_state(state)
                mth = {camera: array[m::M] for camera, array in images.items()}
                frames.append(random_views(mth, encoder, config, generator, Part(part, B)))
            views.append(torch.stack(frames, dim=1).flatten(0, 1))
        return views[0] if R == 1 else torch.stack(views, dim=1).flatten(0, 1)

    def after_step(self) -> None:
        """Update the target network, and what the objective keeps beside it."""
        if (decay := self.config.objective.target_decay) is not None:
            update_ema(self.target, self.encoder, decay)
        self.objective.after_step()

    def changes(self, name: str) -> bool:
        """Targets change without being trained."""
        return name in ("objective", "target") or super().changes(name)

    def fit(
        self,
        progress: Callable[[int, int, str], None] | None = None,
        intermediate: Callable[[Trainer], None] | None = None,
    ) -> ImageEncoder:
        """:meth:`Training.run`; returns the encoder with averaged (EMA) weights."""
        self.run(progress, intermediate)
        return self.average

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        config = spelled_out(without(to_json(self.config), *INCIDENTAL), {"bfloat16": self.bf16})
        return super().identity() | {"config": config, "bfloat16": self.bf16}

    def settle(self, flags: Mapping[str, Any]) -> None:
        """See :meth:`Training.settle`."""
        if self.config.precision == "auto":
            self.bf16 = self._encode.bf16 = bool(flags["bfloat16"])
            if self.config.objective.target_decay is not None:
                self._encode_target.bf16 = self.bf16

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        """The encoder's, then those of the objective that are not copies, in the networks' order, in which the
        gradient's norm is summed.
        """
        return [*self.encoder.parameters(), *(p for p in self.objective.parameters() if p.requires_grad)]
