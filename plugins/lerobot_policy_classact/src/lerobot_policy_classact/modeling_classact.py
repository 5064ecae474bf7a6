"""classact's policy inside LeRobot's interface: its files are the weights, and its own code acts."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor, nn

from classact.data.language import embed_instruction
from classact.data.types import Observation
from classact.policies import load_policy
from classact.policies.base import decide
from classact.policies.control import Controller
from lerobot_policy_classact.configuration_classact import ClassactConfig


class ClassactPolicy(PreTrainedPolicy):  # type: ignore[misc]
    """Retrieval, or a head, that was exported by ``classact export lerobot``."""

    config_class = ClassactConfig
    name = "classact"

    def __init__(self, config: ClassactConfig, **_: Any) -> None:
        super().__init__(config)
        if not config.files:
            raise ValueError(
                "a policy of type 'classact' is not made here: train it with classact and export it, 'classact export "
                "lerobot RUN OUT'; then --policy.path=OUT."
            )
        for number, size in enumerate(config.files.values()):
            self.register_buffer(f"file_{number}", torch.zeros(size, dtype=torch.uint8))
        self.unused = nn.Parameter(torch.zeros(1), requires_grad=False)  # LeRobot asks the first one for its device
        self._made: Any = None
        self.reset()

    @property
    def policy(self) -> Any:
        """classact's policy, read from the files, whose checksums are compared."""
        if self._made is None:
            with tempfile.TemporaryDirectory() as folder:
                for number, name in enumerate(self.config.files):
                    path = Path(folder, "policy", name)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(getattr(self, f"file_{number}").cpu().numpy().tobytes())
                self._made = load_policy(Path(folder, "policy"), device=str(self.unused.device).partition(":")[0])
        return self._made

    def reset(self) -> None:
        """Start episodes: what was seen before is forgotten."""
        self._controller: Controller | None = None
        self._new: list[list[Observation]] = []
        self._pending: deque[np.ndarray[Any, Any]] = deque()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """(B, D) next actions; the policy decides when those of its last decision are used up."""
        seen = self.observations(batch)
        if self._controller is None or len(self._new) != len(seen):
            self._controller = Controller(self.policy)
            self._controller.reset(len(seen))
            self._new, self._pending = [[] for _ in seen], deque()
        for new, one in zip(self._new, seen, strict=True):
            new.append(one)
        if not self._pending:
            decision = self._controller.act(self._new)
            self._pending.extend(np.moveaxis(decision.chunk, 1, 0))
            self._new = [[] for _ in seen]
        return torch.from_numpy(np.ascontiguousarray(self._pending.popleft())).to(self.unused.device)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Any], **_: Any) -> Tensor:
        """(B, T_a, D) what would be done from these observations, whatever came before."""
        return torch.from_numpy(decide(self.policy, self.observations(batch)).chunk).to(self.unused.device)

    def observations(self, batch: Mapping[str, Any]) -> list[Observation]:
        """classact's observations of a batch: images (B, 3, H, W) in [0, 1], numbers (B, n), instructions."""
        schema = self.policy.spec.schema
        needed = [*self.config.cameras.values(), *self.config.proprioception.values()]
        if missing := [name for name in needed if name not in batch]:
            raise KeyError(f"the observation lacks {missing[0]!r}; there are {sorted(batch)}.")
        images = {camera: _pixels(batch[name]) for camera, name in self.config.cameras.items()}
        parts = [batch[self.config.proprioception[key]].float().cpu().numpy() for key in schema.keys]
        count = len(next(iter(images.values()))) if images else len(parts[0])
        numbers = np.concatenate([np.zeros((count, 0), np.float32), *parts], axis=1)
        words: list[Any] = [None] * count
        if schema.language:
            task = batch.get("task", "")
            words = [embed_instruction(one)[0] for one in ([task] * count if isinstance(task, str) else task)]
        return [
            Observation({camera: array[b] for camera, array in images.items()}, numbers[b], language=words[b])
            for b in range(count)
        ]

    def forward(self, batch: dict[str, Any]) -> Any:
        """There is nothing to optimise here."""
        raise NotImplementedError("train with classact: 'classact pretrain', 'classact finetune'; then export again.")

    def get_optim_params(self) -> Any:
        """There is nothing to optimise here."""
        raise NotImplementedError("train with classact: 'classact pretrain', 'classact finetune'; then export again.")


def _pixels(images: Tensor) -> np.ndarray[Any, Any]:
    """(B, 3, H, W) in [0, 1], or uint8 -> (B, H, W, 3) uint8."""
    values = images if images.dtype == torch.uint8 else (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(values.permute(0, 2, 3, 1).cpu().numpy())
