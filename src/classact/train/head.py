"""Behaviour cloning from an encoder (paper sections 4.3 and C.2): encoder and head are trained together.

As in :mod:`classact.train.representation`, every random draw is a function of (seed, step), so a run that was killed
and resumed ends with the same bits as one that was not.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.lowdim import LowDim
from classact.data.types import IntArray
from classact.data.windows import history_indices, window_indices
from classact.errors import CheckpointError
from classact.models.encoders import EncoderConfig
from classact.models.encoders.image import ImageEncoder
from classact.models.heads.base import Head, make_head
from classact.models.latent_actions.decoder import ActionDecoder
from classact.models.weights import load_weights
from classact.policies.config import ParametricConfig
from classact.policies.parametric import ParametricPolicy
from classact.train.augment import Part
from classact.train.batches import epoch_batches
from classact.train.checkpoints import list_checkpoints, load_checkpoint, load_latest
from classact.train.config import INCIDENTAL, AdamWConfig, AugmentConfig, FinetuneConfig
from classact.train.engine import Batch, Stats, Training, check_engine, spelled_out, step_generator, use_bfloat16
from classact.train.loader import describe_bytes, upload
from classact.train.representation import EncoderPass, encoder_images, random_views
from classact.utils.codec import from_json, to_json, without

VIEW_CHUNK = 512
"""Images whose views are encoded together; a constant, so that any number of ranks draws the same views."""

VIEW_STREAM = 0x76696577  # keeps views that are drawn once apart from those of steps


def load_encoder(path: Path, weights: str = "average") -> ImageEncoder:
    """The encoder to start from.

    Args:
        path: an encoder's folder (or hub id), a folder of pre-training checkpoints, or one of these checkpoints.
        weights: "average" or "last"; a finished encoder's folder holds the averaged ones only.

    Raises:
        CheckpointError: damaged, or without the weights that were asked for.
    """
    path = Path(path)
    folder = path.parent if path.name.startswith("step-") else path
    found = [p for _, p in list_checkpoints(folder) if path in (folder, p)]
    if not found:
        if weights == "last":
            raise CheckpointError(
                f"{path} is no folder of training checkpoints, and only these hold the last, not averaged, weights. "
                f"Name the pre-training's checkpoints folder, or start from weights 'average'."
            )
        return ImageEncoder.from_pretrained(path)
    state = load_latest(folder) if path == folder else load_checkpoint(path)
    assert state is not None
    settings = state.meta.get("identity", {}).get("config", {}).get("encoder")
    config = from_json(EncoderConfig, settings, f"{found[-1]}: identity.config.encoder", error=CheckpointError)
    encoder = ImageEncoder(config, load_init=False)
    load_weights(encoder, state.part("ema.encoder." if weights == "average" else "model.encoder."), found[-1])
    return encoder


def parameter_groups(encoder: ImageEncoder, head: Head, config: AdamWConfig) -> list[dict[str, Any]]:
    """What is trained, with the rate of its network; only tensors of two or more dimensions decay."""
    groups: list[dict[str, Any]] = []
    for network, rate in ((encoder, config.encoder_lr), (head, config.head_lr)):
        trained = [p for p in network.parameters() if p.requires_grad]
        for group, decay in (
            ([p for p in trained if p.ndim > 1], config.weight_decay),
            ([p for p in trained if p.ndim <= 1], 0.0),
        ):
            if group:
                groups.append({"params": group, "weight_decay": decay, "lr": rate})
    return groups


def shown_pixels(
    images: Batch, encoder: EncoderConfig, augment: AugmentConfig | None, generator: torch.Generator, part: Part
) -> Tensor:
    """(B, V, 3, crop, crop) pixels of (B, S, S, 3) images by camera: random views, or centre crops without augment."""
    if not encoder.cameras:
        count, crop = part.rows.stop - part.rows.start, encoder.crop_size
        return torch.zeros(count, 0, 3, crop, crop, device=generator.device)
    if augment is not None:
        return random_views(images, encoder, augment, generator, part)
    edge = (encoder.image_size - encoder.crop_size) // 2
    inside = slice(edge, edge + encoder.crop_size)
    views = [images[camera][:, inside, inside].permute(0, 3, 1, 2).float() for camera in encoder.cameras]
    return torch.stack(views, dim=1).contiguous()


def decision_features(
    head: Head, image: Tensor, lowdim: Tensor, samples: int = 1, noise: Tensor | None = None
) -> Tensor:
    """(B S, C) what a head sees in training of B decisions, each S times, under different noise.

    Args:
        head: standardises them.
        image: (B T_o, F) image features, those of a decision one behind the other.
        lowdim: (B T_o, d) proprioception and language.
        samples: S.
        noise: (B T_o, S, F), added to standardised image features; None: none.
    """
    history = head.feature_dim // (image.shape[1] + lowdim.shape[1])
    features = head.standardize(torch.cat([image, lowdim], dim=1).reshape(-1, head.feature_dim))
    if noise is None:
        return features.repeat_interleave(samples, dim=0)
    F = image.shape[1]
    each = features.reshape(len(features), 1, history, -1).repeat(1, samples, 1, 1)
    each[..., :F] += noise.reshape(len(features), history, samples, F).transpose(1, 2)
    return each.reshape(len(features) * samples, -1)


def set_standardization(head: Head, mean: Tensor, std: Tensor, history: int) -> None:
    """Image features of this mean and standard deviation (F,) become standard ones; the others stay as they are."""
    rest = head.feature_dim // history - len(mean)
    head.center.copy_(torch.cat([mean, mean.new_zeros(rest)]).repeat(history))
    head.scale.copy_(torch.cat([std.clamp(min=1e-6), std.new_ones(rest)]).repeat(history))


@dataclass(eq=False)
class FineTuner(Training):
    """One fine-tuning, or one training from scratch.

    Args:
        encoder_folder: pre-trained encoder to start from, see :func:`load_encoder`; None starts from scratch, with
            ``config.encoder`` and the initial weights that it names.
        decoder: of latent actions, where demonstrations hold these in the place of actions; None: they are actions.

    Attributes:
        encoder, head: the networks that are trained.
        average_encoder, average_head: their averaged (EMA) weights, which act.
    """

    config: FinetuneConfig
    encoder_folder: Path | None = None
    decoder: ActionDecoder | None = None

    def __post_init__(self) -> None:
        data, config = self.demonstrations, self.config
        check_engine(self.engine, self.ranks, config.batch_size, data.num_steps)
        data.require_actions()
        if self.encoder_folder is None:
            self.encoder = ImageEncoder(config.encoder, seed=config.seed)
        else:
            self.encoder = load_encoder(self.encoder_folder, config.weights)
        self._started_from = _digest(self.encoder)
        images = encoder_images(data, self.encoder.config)
        device = torch.device(self.device)
        self.bf16 = use_bfloat16(config.precision, device)
        native = device.type == "cuda" or config.head_precision != "auto"
        self.head_bf16 = native and use_bfloat16(config.head_precision, device)
        self.action_range, self.lowdim = data.action_range(), LowDim.fit(data, config.keys)
        self._actions = torch.from_numpy(self.action_range.apply(data.actions)).to(device)
        self._lowdim = torch.from_numpy(self.lowdim.demonstrations(data)).to(device)
        # On the device with all that is indexed: a step sends its rows there, and waits for nothing.
        self._windows = torch.from_numpy(window_indices(data.episode_ends, config.horizon)).to(device)
        self._histories = history_indices(data.episode_ends, config.history)
        self._timesteps = torch.from_numpy(self._histories).to(device)
        features = config.history * (self.encoder.feature_dim + self.lowdim.dim)
        self.head = make_head(config.head, features, data.actions.shape[1], config.horizon, seed=config.seed).to(device)
        self.encoder = self.encoder.to(device).requires_grad_(not config.frozen)
        self.average_head = copy.deepcopy(self.head).requires_grad_(False)
        self.average_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self._encode = EncoderPass(self.encoder, self.engine, bf16=self.bf16, average=self.average_encoder)
        self._views: Tensor | None = None
        self.start(
            networks={"encoder": self.encoder, "head": self.head},
            averages={"encoder": self.average_encoder, "head": self.average_head},
            optimizer=self._optimizer(),
            schedule=config.optimizer.schedule(),
            images=images,
            loads=self.count == 0 and bool(images),
        )

    @property
    def count(self) -> int:
        """V, views of every image whose features are computed once; 0: those of a batch are computed with it."""
        if not self.config.frozen:
            return 0
        return 1 if self.config.augment is None else self.config.views

    def _optimizer(self) -> torch.optim.AdamW:
        config = self.config.optimizer
        groups = parameter_groups(self.encoder, self.head, config)
        for group in groups:
            group["peak"] = group.pop("lr")
        # One kernel for all tensors: a head of 80 million parameters is otherwise limited by memory.
        return torch.optim.AdamW(groups, lr=config.head_lr, betas=config.betas, fused=True)

    # -- one step ---------------------------------------------------------------------------------------------------

    def batches(self, first_step: int) -> Iterator[IntArray]:
        """Slices of shuffled epochs."""
        weights = self.demonstrations.weights()
        return epoch_batches(self.examples, self.config.batch_size, self.config.seed, first_step, weights)

    def timesteps(self, rows: IntArray) -> IntArray:
        """(B T_o,) the steps whose images a decision at each of ``rows`` (B,) is made from, oldest first."""
        return self._histories[rows].ravel()

    def images_per_row(self) -> int:
        """T_o images of each camera per decision."""
        return self.config.history * len(self.encoder.config.cameras)

    def gradients(self, rows: IntArray, part: slice, images: Batch, generator: torch.Generator) -> Stats:
        """The head's loss, averaged over the whole batch."""
        B, history = len(rows), self.config.history
        device = torch.device(self.device)
        own = upload(rows[part], device)
        timesteps = self._timesteps[own].reshape(-1)
        of_timesteps = Part(slice(part.start * history, part.stop * history), B * history)
        S, shown = self.config.samples, len(own)
        given = self._given(images, timesteps, generator, of_timesteps)
        shape = (B * history, S, self.encoder.feature_dim)
        noise = torch.randn(shape, generator=generator, device=device)[of_timesteps.rows] if self.config.noise else None
        drawn = [values[part.start * S : part.stop * S] for values in self.head.draw(B * S, generator, device)]
        actions = self._actions[self._windows[own]]
        total = torch.zeros((), dtype=torch.float64, device=device)
        for piece in np.array_split(np.arange(shown), self.engine.accumulate):
            first, last = int(piece[0]), int(piece[-1]) + 1
            inside = slice(first * history, last * history)
            image = given[inside] if self.count else self._encoded(given[inside])
            features = self._standardized(image, timesteps[inside], None if noise is None else noise[inside])
            with torch.autocast(device.type, torch.bfloat16, enabled=self.head_bf16):
                share = tuple(values[first * S : last * S] for values in drawn)
                losses = self.head.losses(features, actions[first:last].repeat_interleave(S, dim=0), share)
            loss = losses.float().sum() / (B * S)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double()
        if self.ranks.world > 1:
            self.ranks.sum_([total])
        return {"loss": total}

    def _given(self, images: Batch, timesteps: Tensor, generator: torch.Generator, part: Part) -> Tensor:
        """Of each timestep of this part: features of one of its views where they are there, else the pixels of one."""
        if self.count:
            views = self._all_views()
            drawn = torch.randint(self.count, (part.total,), generator=generator, device=generator.device)
            return views[part.cut(drawn), timesteps]
        return self._pixels(images, generator, part)

    def _pixels(self, images: Batch, generator: torch.Generator, part: Part) -> Tensor:
        return shown_pixels(images, self.encoder.config, self.config.augment, generator, part)

    def _encoded(self, pixels: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.config.frozen):
            return self._encode(pixels)

    def _standardized(self, image: Tensor, timesteps: Tensor, noise: Tensor | None) -> Tensor:
        strength = None if noise is None else self.config.noise * noise
        return decision_features(self.head, image, self._lowdim[timesteps], self.config.samples, strength)

    def prepare(self) -> None:
        """Compute the features of a frozen encoder, where they are computed once; fit their standardisation."""
        if self.count:
            self._all_views()
        if self.config.standardize and self.encoder.feature_dim and self.step == 0:
            if not self.count:
                self._tell(f"features of {self.examples:,} images are computed, to standardise them")
            self._fit_standardization(self._all_views() if self.count else self._encode_views(1))

    def _fit_standardization(self, views: Tensor) -> None:
        flat = views.flatten(0, 1).double()
        for head in (self.head, self.average_head):
            set_standardization(head, flat.mean(0), flat.std(0), self.config.history)

    def _all_views(self) -> Tensor:
        if self._views is None:
            size = describe_bytes(4 * self.count * self.examples * self.encoder.feature_dim)
            images = f"{self.count} x {self.examples:,} images"
            self._tell(f"features of {images} are computed once, before training ({size})")
            self._views = self._encode_views(self.count)
        return self._views

    def _tell(self, text: str) -> None:
        if self.say is not None and self.ranks.first:
            self.say(text)

    @torch.no_grad()
    def _encode_views(self, count: int) -> Tensor:
        """(V, N, F) features of ``count`` views of every image; each rank computes its part of them."""
        views = []
        for view in range(count):
            chunks = list(range(0, self.examples, VIEW_CHUNK))
            own = []
            for first in chunks[self.ranks.part(len(chunks))]:
                own.append(self._encode_chunk(view, first))
                done = view * self.examples + min(first + VIEW_CHUNK, self.examples)
                self.status(f"features: {done / (count * self.examples):.0%}")
            empty = torch.zeros((0, self.encoder.feature_dim), device=self.device)
            views.append(self.ranks.gather(torch.cat([empty, *own])))
        return torch.stack(views)

    def _encode_chunk(self, view: int, first: int) -> Tensor:
        last = min(first + VIEW_CHUNK, self.examples)
        # Copies: images of the store cannot be written to, which torch warns of.
        images = {name: torch.from_numpy(np.array(array[first:last])) for name, array in self.images.items()}
        images = {name: pixels.to(self.device) for name, pixels in images.items()}
        generator = step_generator(self.config.seed, (VIEW_STREAM, view, first), torch.device(self.device))
        return self._encode(self._pixels(images, generator, Part(slice(0, last - first), last - first)))

    def rates(self, rate: float) -> dict[str, float]:
        """The head's and the encoder's."""
        config = self.config
        encoder = 0.0 if config.frozen else config.optimizer.encoder_lr * rate
        return {"lr": config.optimizer.head_lr * rate, "encoder_lr": encoder}

    # -- the run ----------------------------------------------------------------------------------------------------

    def fit(
        self,
        progress: Callable[[int, int, str], None] | None = None,
        intermediate: Callable[[FineTuner], None] | None = None,
    ) -> ParametricPolicy:
        """:meth:`Training.run`; returns the policy with averaged (EMA) weights."""
        self.run(progress, intermediate)
        return self.policy()

    def policy(self) -> ParametricPolicy:
        """The policy with the present averaged (EMA) weights, which it shares: they change as training goes on."""
        config = self.config
        acting = ParametricConfig(config.chunk_length, config.history, config.seed, self.bf16, config.speed)
        labels = {"head": config.head.name, **config.labels(scratch=self.encoder_folder is None)}
        lowdim = self.lowdim
        if self.decoder is not None:  # what it executes are a robot's actions
            lowdim = replace(lowdim, schema=replace(lowdim.schema, actions=self.decoder.space))
        return ParametricPolicy(
            self.average_encoder,
            self.average_head,
            self.action_range,
            lowdim,
            acting,
            {"step": self.step, "steps": self.steps, **labels, "data": self.demonstrations.fingerprint()},
            self.decoder,
        )

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        config = replace(self.config, encoder=self.encoder.config)
        flags = {"bfloat16": self.bf16, "head_bfloat16": self.head_bf16}
        return super().identity() | {
            "config": spelled_out(without(to_json(config), *INCIDENTAL, *config.acting, "weights"), flags),
            "encoder_weights": self._started_from,
            **flags,
        }

    def settle(self, flags: Mapping[str, Any]) -> None:
        """See :meth:`Training.settle`."""
        if self.config.precision == "auto":
            self.bf16 = self._encode.bf16 = bool(flags["bfloat16"])
        if self.config.head_precision == "auto":
            self.head_bf16 = bool(flags["head_bfloat16"])

    def sizes(self) -> str:
        """The head's, and of what is computed once."""
        views = f", views (now {self.count})" if self.count > 1 else ""
        return f", the head's size (now {self.config.head.describe()}){views}"


def _digest(module: nn.Module) -> str:
    """SHA-256 of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
