"""From latent actions to a robot's: what a policy that learned latent ones acts by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.actions import ActionSpace
from classact.data.normalize import MinMax
from classact.data.types import FloatArray
from classact.errors import CheckpointError
from classact.models.latent_actions.networks import SLOPE, dense
from classact.models.weights import load_weights
from classact.utils.codec import from_json, to_json
from classact.utils.storage import read_json, verify_folder, write_folder, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"
FORMAT = "classact-action-decoder-1"
HIDDEN = (512, 1024, 1024, 1024)


@dataclass(frozen=True)
class DecoderMetadata:
    """config.json of a saved decoder."""

    format: str
    latent_dim: int
    hidden: tuple[int, ...]
    actions: MinMax
    space: ActionSpace | None


class ActionDecoder(nn.Module):
    """z_t -> a_t; by intention it does not see the observation, so that z has to say all that an action depends on.

    Attributes:
        actions: range of the labelled actions, which outputs from -1 to 1 stand for.
        space: what the actions mean.
    """

    def __init__(
        self, latent_dim: int, actions: MinMax, space: ActionSpace | None, hidden: tuple[int, ...] = HIDDEN
    ) -> None:
        super().__init__()
        self.latent_dim, self.actions, self.space, self.hidden = latent_dim, actions, space, hidden
        first, *rest = hidden
        inner = dense(first, list(rest), len(actions.low))
        self.layers = nn.Sequential(nn.Linear(latent_dim, first), nn.LeakyReLU(SLOPE), *inner)

    def forward(self, z: Tensor) -> Tensor:
        """(..., Z) -> (..., A) in [-1, 1]."""
        return torch.tanh(self.layers(z))

    @torch.inference_mode()
    def decode(self, z: FloatArray) -> FloatArray:
        """(..., Z) latent actions -> (..., A) actions in their own units; 6-D rotations are orthonormal."""
        device = next(self.parameters()).device
        found = self.actions.invert(self(torch.from_numpy(np.ascontiguousarray(z)).to(device)).cpu().numpy())
        has_rotations = self.space is not None and self.space.has_rotations
        return self.space.orthogonalize(found) if has_rotations and self.space is not None else found

    def save(self, folder: Path) -> None:
        """Write weights and what they mean as one checksummed folder."""
        from safetensors.torch import save_file

        metadata = DecoderMetadata(FORMAT, self.latent_dim, self.hidden, self.actions, self.space)

        def fill(path: Path) -> None:
            save_file({k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}, path / WEIGHTS)
            write_json(path / CONFIG, to_json(metadata))

        write_folder(Path(folder), fill)

    @staticmethod
    def load(folder: Path) -> ActionDecoder:
        """Read what :meth:`save` wrote; a damaged folder is a CheckpointError."""
        from safetensors.torch import load_file

        verify_folder(folder)
        value: Any = read_json(folder / CONFIG, CheckpointError)
        read = from_json(DecoderMetadata, value, str(folder / CONFIG), error=CheckpointError)
        decoder = ActionDecoder(read.latent_dim, read.actions, read.space, read.hidden)
        load_weights(decoder, load_file(folder / WEIGHTS), folder / WEIGHTS)
        return decoder.requires_grad_(False).eval()
