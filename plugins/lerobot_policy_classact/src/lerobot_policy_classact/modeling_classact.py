"""classact's policies inside LeRobot's interface: exported ones act as they are, heads are trained as classact does."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from classact.data.images import resize_images
from classact.data.language import SIZE, embed_instruction
from classact.data.schema import Schema
from classact.data.types import FloatArray, ImageArray, Observation
from classact.errors import CheckpointError, ConfigError
from classact.models.average import ema_decay, update_ema
from classact.models.encoders.image import ImageEncoder
from classact.models.heads.base import Head, make_head
from classact.policies import load_policy
from classact.policies.base import Policy, decide
from classact.policies.config import ParametricConfig
from classact.policies.control import Controller
from classact.policies.parametric import ParametricPolicy
from classact.train.augment import Part
from classact.train.engine import step_generator
from classact.train.head import decision_features, parameter_groups, set_standardization, shown_pixels
from classact.utils.codec import from_json, to_json
from lerobot_policy_classact.configuration_classact import ClassactConfig
from lerobot_policy_classact.dataset import Trained, described

logger = logging.getLogger(__name__)

STANDARDIZED_ON = 1024
"""Observations whose features a head's standardisation is estimated on: the first ones of a training."""


class ClassactPolicy(PreTrainedPolicy):  # type: ignore[misc]
    """Retrieval or a head that ``classact export lerobot`` wrote, or a head that ``lerobot-train`` trains.

    Weights of an exported policy are the bytes of its files. Of a trained one they are those of encoder and head and
    their averages, which act.
    """

    config_class = ClassactConfig
    name = "classact"

    def __init__(self, config: ClassactConfig, *, dataset_meta: Any = None, **_: Any) -> None:
        super().__init__(config)
        for number, size in enumerate(config.files.values()):
            self.register_buffer(f"file_{number}", torch.zeros(size, dtype=torch.uint8))
        self.unused = nn.Parameter(torch.zeros(1), requires_grad=False)  # LeRobot asks the first one for its device
        self._made: Policy | None = None
        self._said = False
        if config.files:
            config.check_exported()
        else:
            self._make_networks(dataset_meta)
        self.reset()

    def _make_networks(self, dataset_meta: Any) -> None:
        config = self.config
        start: ImageEncoder | None = None
        if not config.trained:
            if config.encoder is None:
                raise ConfigError(
                    "a policy of type 'classact' is a head on an encoder that classact pre-trained, --policy.encoder="
                    "RUN/encoder --policy.head=mlp, or was exported: 'classact export lerobot RUN OUT', then "
                    "--policy.path=OUT."
                )
            if dataset_meta is None:
                raise ConfigError("a head is trained on a data set: lerobot-train --dataset.repo_id=...")
            run = Path(config.encoder, "encoder")
            start = ImageEncoder.from_pretrained(run if run.is_dir() else config.encoder)
            found = described(config, start.config, dataset_meta)
            config.trained = to_json(found)
            # Which feature is what, for those who load it.
            config.cameras, config.proprioception = dict(found.cameras), dict(found.proprioception)
        self.trained = trained = from_json(Trained, config.trained, "config.json: trained", error=CheckpointError)
        wanted = config.finetune()
        for name in ("head", "horizon", "history", "frozen"):
            made, asked = getattr(trained.finetune, name), getattr(wanted, name)
            if made != asked:
                raise ConfigError(f"this head was made with {name} {made}, which cannot become {asked}: train another.")
        self.finetune = replace(wanted, encoder=trained.finetune.encoder)
        if dataset_meta is not None:
            trained.check(dataset_meta)
        encoder = ImageEncoder(self.finetune.encoder, load_init=False) if start is None else start
        features = self.finetune.history * (encoder.feature_dim + trained.lowdim.dim)
        self.encoder: ImageEncoder = encoder.requires_grad_(not self.finetune.frozen)
        seed = int(torch.randint(2**31, ()))  # LeRobot's --seed has seeded torch's global generator
        head = make_head(self.finetune.head, features, len(trained.actions.low), self.finetune.horizon, seed=seed)
        self.head: Head = head
        self.average_head = copy.deepcopy(head).requires_grad_(False)
        if not self.finetune.frozen:
            self.average_encoder: ImageEncoder = copy.deepcopy(encoder).requires_grad_(False)
        # Draws are a function of seed and step, so that a training that is resumed goes on as it would have.
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        # What features were like, until their standardisation is known.
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("feature_mean", torch.zeros(encoder.feature_dim))
        self.register_buffer("feature_squares", torch.zeros(encoder.feature_dim))

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **settings: Any) -> ClassactPolicy:
        """Load a folder, or a repository of the hub; missing or other weights are an error whatever ``strict`` says."""
        try:
            made: ClassactPolicy = super().from_pretrained(pretrained_name_or_path, **settings | {"strict": True})
        except RuntimeError as problem:
            raise CheckpointError(
                f"{pretrained_name_or_path}: model.safetensors does not hold the weights that config.json describes "
                f"({' '.join(str(problem).split())[:200]}). Export it, or download it, again."
            ) from None
        return made

    # Acting

    @property
    def policy(self) -> Policy:
        """classact's policy; an exported one is read from its files, whose checksums are compared."""
        if self._made is None:
            self._made = self._exported() if self.config.files else self._parametric()
        return self._made

    def _exported(self) -> Policy:
        with tempfile.TemporaryDirectory() as folder:
            for number, name in enumerate(self.config.files):
                path = Path(folder, "policy", name)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(getattr(self, f"file_{number}").cpu().numpy().tobytes())
            device, speed = str(self.unused.device).partition(":")[0], self.config.speed
            changed = {} if speed is None else {"speed": speed}
            policy: Policy = load_policy(Path(folder, "policy"), device=device, **changed)
        return policy

    def _parametric(self) -> ParametricPolicy:
        acting = ParametricConfig(
            chunk_length=self.finetune.chunk_length,
            history=self.finetune.history,
            seed=self.finetune.seed,
            speed=self.finetune.speed,
        )
        encoder = self.encoder if self.finetune.frozen else self.average_encoder
        labels = {"head": self.finetune.head.name, **self.finetune.labels(scratch=False)}
        return ParametricPolicy(encoder, self.average_head, self.trained.actions, self.trained.lowdim, acting, labels)

    def reset(self) -> None:
        """Start episodes: what was seen before is forgotten."""
        self._controller: Controller | None = None
        self._new: list[list[Observation]] = []
        self._action_queue: deque[FloatArray] = deque()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """(B, D) next actions; the policy decides when those of its last decision are used up."""
        seen = self.observations(batch)
        if self._controller is None or len(self._new) != len(seen):
            self._controller = self._control()
            self._controller.reset(len(seen))
            self._new, self._action_queue = [[] for _ in seen], deque()
        for new, one in zip(self._new, seen, strict=True):
            new.append(one)
        if not self._action_queue:
            decision = self._controller.act(self._new)
            self._action_queue.extend(decision.chunk.swapaxes(0, 1))
            self._new = [[] for _ in seen]
        return torch.from_numpy(np.ascontiguousarray(self._action_queue.popleft())).to(self.unused.device)

    def _control(self) -> Controller:
        """As the policy was evaluated, or with another number of executed actions."""
        policy, execute = self.policy, self.config.n_action_steps
        try:
            return Controller(policy, replace(policy.spec.control, execute=execute))
        except ConfigError as problem:
            raise ConfigError(f"--policy.n_action_steps {execute}: {problem}") from None

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """(B, T_a, D) what would be done from these observations, whatever came before."""
        history = self.policy.spec.history
        seen = [[one] * history if history > 1 else one for one in self.observations(batch)]
        return torch.from_numpy(decide(self.policy, seen).chunk).to(self.unused.device)

    def observations(self, batch: Mapping[str, Any]) -> list[Observation]:
        """classact's observations of a batch: images (B, 3, H, W) in [0, 1], numbers (B, n), instructions."""
        self._check_names(batch)
        schema, _ = self._observed()
        images = {camera: _pixels(batch[name]) for camera, name in self.config.cameras.items()}
        first = next(iter(images.values())) if images else batch[self.config.proprioception[schema.keys[0]]]
        numbers = self._numbers(batch, len(first)).cpu().numpy()
        words = self._words(batch, len(first)) if schema.language else [None] * len(first)
        return [
            Observation({camera: array[b] for camera, array in images.items()}, numbers[b], language=words[b])
            for b in range(len(first))
        ]

    def _check_names(self, batch: Mapping[str, Any]) -> None:
        needed = [*self.config.cameras.values(), *self.config.proprioception.values()]
        if missing := [name for name in needed if name not in batch]:
            raise KeyError(f"the observation lacks {missing[0]!r}; there are {sorted(batch)}.")

    def _observed(self) -> tuple[Schema, str]:
        """What an observation holds, and what embeds its instruction."""
        if not self.config.files:
            return self.trained.lowdim.schema, self.trained.lowdim.language_source
        spec = self.policy.spec
        assert spec.schema is not None
        return spec.schema, spec.language_source

    def _numbers(self, batch: Mapping[str, Any], count: int) -> Tensor:
        """(count, D_p) in the order of the schema."""
        schema, _ = self._observed()
        parts = [batch[self.config.proprioception[key]].float().reshape(count, -1) for key in schema.keys]
        return torch.cat(parts, dim=1) if parts else torch.zeros((count, 0))

    def _words(self, batch: Mapping[str, Any], count: int) -> list[FloatArray]:
        """Embeddings of the instructions, by what has embedded those that were learned from.

        Raises:
            ConfigError: that is not installed here, or it is none that classact knows.
        """
        schema, source = self._observed()
        if not source and schema.language != SIZE:
            raise ConfigError(
                f"the policy was trained on instructions as {schema.language} numbers, and what embedded them is not "
                f"known; classact embeds them as {SIZE}. Call it from Python (classact.policies.Runner), with your own "
                f"embeddings."
            )
        task = batch.get("task") or ""
        texts = [task] * count if isinstance(task, str) else list(task)
        if not self._said:
            self._said = True
            if not source:
                logger.warning("what embedded the instructions that the policy was trained on is not known")
            if not all(texts):
                logger.warning("the policy was trained on instructions, but is given none (task) (said once)")
        return [embed_instruction(one or "no instruction", source or None)[0] for one in texts]

    # Training

    def forward(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The head's loss of a batch: images (B, 3, H, W) in [0, 1], or (B, T_o, 3, H, W), actions (B, T_p, D)."""
        if self.config.files:
            self.config.get_optimizer_preset()  # says what to do instead
        self._check_names(batch)
        config, device = self.finetune, self.unused.device
        actions = batch["action"]
        expected = (config.horizon, len(self.trained.actions.low))
        if tuple(actions.shape[1:]) != expected:
            raise ConfigError(
                f"expected actions of shape (B, {expected[0]}, {expected[1]}), as the head was made for, got "
                f"{tuple(actions.shape)}."
            )
        B, frames = len(actions), len(actions) * config.history
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        generator = step_generator(int(self.seed), (int(self.updates), rank), device)
        images = {camera: self._training_images(batch[name], frames) for camera, name in self.config.cameras.items()}
        whole = Part(slice(0, frames), frames)
        pixels = shown_pixels(images, self.encoder.config, config.augment if self.training else None, generator, whole)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not config.frozen):
            image = self.encoder(self.encoder.normalize(pixels))
        if self.training and config.standardize and int(self.seen) < STANDARDIZED_ON:
            self._standardize_by(image.detach())
        S = config.samples if self.training else 1
        noise = None
        if self.training and config.noise:
            shape = (frames, S, self.encoder.feature_dim)
            noise = config.noise * torch.randn(shape, generator=generator, device=device)
        features = decision_features(self.head, image, self._lowdim(batch, B).to(device), S, noise)
        wanted = torch.from_numpy(self.trained.actions.apply(actions.float().cpu().numpy())).to(device)
        drawn = self.head.draw(B * S, generator, device)
        loss = self.head.losses(features, wanted.repeat_interleave(S, dim=0), drawn).mean()
        return loss, {}

    def _training_images(self, images: Tensor, count: int) -> Tensor:
        """(count, S, S, 3) uint8, resized as classact resizes observations."""
        size, frames = self.encoder.config.image_size, images.reshape(count, *images.shape[-3:])
        if tuple(frames.shape[-2:]) == (size, size):
            return _bytes(frames).permute(0, 2, 3, 1)
        return torch.from_numpy(resize_images(_pixels(frames), size)).to(images.device)

    def _lowdim(self, batch: Mapping[str, Any], count: int) -> Tensor:
        """(B T_o, d) normalised numbers, then the instruction."""
        history, lowdim = self.finetune.history, self.trained.lowdim
        numbers = self._numbers(batch, count * history).cpu().numpy()
        words = np.repeat(np.stack(self._words(batch, count)), history, axis=0) if lowdim.schema.language else None
        return torch.from_numpy(lowdim.rows(numbers, words))

    @torch.no_grad()
    def _standardize_by(self, image: Tensor) -> None:
        """Join (n, F) features to the mean and the spread so far (Chan et al.), and use these."""
        before, new = int(self.seen), len(image)
        after = before + new
        mean, away = image.mean(0), image.mean(0) - self.feature_mean
        self.feature_squares += (image - mean).square().sum(0) + away.square() * before * new / after
        self.feature_mean += away * new / after
        self.seen += new
        if after > 1:
            spread = (self.feature_squares / (after - 1)).sqrt()
            for head in (self.head, self.average_head):
                set_standardization(head, self.feature_mean, spread, self.finetune.history)

    def update(self) -> None:
        """After each update of the weights: average them. LeRobot calls it."""
        self.updates += 1
        decay = ema_decay(int(self.updates), self.finetune.optimizer.ema_power)
        update_ema(self.average_head, self.head, decay)
        if not self.finetune.frozen:
            update_ema(self.average_encoder, self.encoder, decay)

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Head and encoder, each with its rate."""
        self.config.get_optimizer_preset()  # says what to do instead where there is nothing to train
        return parameter_groups(self.encoder, self.head, self.finetune.optimizer)


def _bytes(images: Tensor) -> Tensor:
    """[0, 1], or uint8 -> uint8."""
    return images if images.dtype == torch.uint8 else (images.float() * 255).round().clamp(0, 255).to(torch.uint8)


def _pixels(images: Tensor) -> ImageArray:
    """(B, 3, H, W) in [0, 1], or uint8 -> (B, H, W, 3) uint8."""
    return np.ascontiguousarray(_bytes(images).permute(0, 2, 3, 1).cpu().numpy())
