"""Encoders and deterministic policies as ONNX graphs, for runtimes without Python or torch.

Inputs are one per camera, by its name: (B, S, S, 3) uint8 RGB, resized to the encoder's ``image_size`` S as
:func:`classact.data.images.resize_images` does (area averaging where images shrink); of policies also
``proprioception`` (B, D_p) and ``language`` (B, D_l), as observed. Crop, scaling and normalisation are in the graph;
B is free. Outputs are ``features`` (B, F) of an encoder, ``actions`` (B, T_a, D) of a policy, in the units of the data,
and of retrieval also ``neighbors`` (B, k) rows of the bank, their ``cosine`` and ``weights``. Everything is float32.

A graph is one decision. What a policy does around it (:func:`left_out`) is for whoever runs it; that is logged and,
like the inputs, said in the file's metadata ``classact``.
"""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.actions import ActionSpace
from classact.data.lowdim import LowDim
from classact.data.normalize import MinMax
from classact.errors import ConfigError, MissingDependencyError
from classact.models.encoders.image import ImageEncoder
from classact.policies.base import PolicySpec
from classact.policies.latents import ImageLatents
from classact.policies.monitored import MonitoredPolicy
from classact.policies.parametric import ParametricPolicy
from classact.policies.retrieval import RetrievalPolicy
from classact.policies.speed import played, reach
from classact.utils.machine import versions
from classact.utils.storage import atomic_path

logger = logging.getLogger(__name__)

LARGEST = 1.9e9
"""Bytes of weights and bank: a file of ONNX is smaller than 2 GiB."""


class EncoderGraph(nn.Module):
    """V arrays (B, S, S, 3) uint8 -> features (B, F V): :meth:`ImageEncoder.encode` of resized images."""

    def __init__(self, encoder: ImageEncoder) -> None:
        super().__init__()
        if encoder.config.color == "whiten":
            raise ConfigError(
                "this encoder whitens each image's colours by an eigendecomposition, which ONNX does not have. Train "
                "one with color 'rgb'."
            )
        self.encoder = encoder
        self.count = len(encoder.config.cameras)

    @property
    def names(self) -> list[str]:
        """Of the inputs."""
        return list(self.encoder.config.cameras)

    @property
    def outputs(self) -> list[str]:
        """Of the outputs."""
        return ["features"]

    def examples(self) -> list[Tensor]:
        """One input of each name, of two timesteps."""
        size = self.encoder.config.image_size
        return [torch.zeros(2, size, size, 3, dtype=torch.uint8) for _ in self.names]

    def forward(self, *images: Tensor) -> Tensor:
        """The features of all views, one behind the other."""
        return torch.cat(self.parts(*images), dim=1)

    def parts(self, *images: Tensor) -> list[Tensor]:
        """The (B, F) features of each view."""
        config, parts = self.encoder.config, []
        edge = (config.image_size - config.crop_size) // 2
        inside = slice(edge, edge + config.crop_size)
        for v, frames in enumerate(images[: self.count]):
            pixels = frames[:, inside, inside].permute(0, 3, 1, 2).float()
            view: Any = self.encoder.views[0 if config.shared else v]
            parts.append(view.pool(view.backbone(self.encoder.normalize(pixels))).float())
        return parts


class _LowDimGraph(nn.Module):
    """(B, D_p) proprioception and (B, D_l) language as observed -> as :meth:`LowDim.rows`."""

    low: Tensor
    span: Tensor

    def __init__(self, lowdim: LowDim) -> None:
        super().__init__()
        self.lowdim = lowdim
        low, high = torch.from_numpy(lowdim.range.low), torch.from_numpy(lowdim.range.high)
        self.register_buffer("low", low.clone())
        self.register_buffer("span", high - low)
        self.columns = [int(column) for column in lowdim.schema.columns(lowdim.keys)]

    @property
    def names(self) -> list[str]:
        schema = self.lowdim.schema
        return ["proprioception"] * bool(schema.keys) + ["language"] * bool(schema.language)

    def examples(self) -> list[Tensor]:
        schema = self.lowdim.schema
        sizes = {"proprioception": schema.proprioception_dim, "language": schema.language}
        return [torch.zeros(2, sizes[name]) for name in self.names]

    def forward(self, *given: Tensor) -> list[Tensor]:
        named, parts = dict(zip(self.names, given, strict=True)), []
        if self.columns:
            values = named["proprioception"][:, self.columns]
            for start, reference in self.lowdim.quaternions:
                block = values[:, start : start + 4]
                side = torch.where(block @ torch.tensor(reference) < 0, -1.0, 1.0)[:, None]
                values = torch.cat([values[:, :start], block * side, values[:, start + 4 :]], dim=1)
            parts.append((values - self.low) / self.span * 2 - 1)
        if "language" in named:
            parts.append(named["language"])
        return parts


class _PlayedGraph(nn.Module):
    """(B, ..., T, D) chunks -> (B, ..., T_a, D) at the policy's speed: :func:`played` without rotations."""

    mix: Tensor
    scale: Tensor

    def __init__(self, length: int, speed: float, space: ActionSpace | None, dims: int) -> None:
        super().__init__()
        if space is not None and space.has_rotations:
            raise ConfigError(
                "these actions hold rotations or angles, whose means are computed outside of the network. Export the "
                "encoder alone."
            )
        steps = reach(length, speed)
        scale = np.ones(dims, np.float32)
        if space is not None and speed != 1:
            scale[space.dimensions("velocity")] = speed
        self.register_buffer("mix", torch.from_numpy(played(np.eye(steps, dtype=np.float32), speed, length)))
        self.register_buffer("scale", torch.from_numpy(scale))
        self.steps = steps

    def forward(self, chunks: Tensor) -> Tensor:
        return self.mix @ chunks[..., : self.steps, :] * self.scale


class _Inverse(nn.Module):
    """(..., D) in [-1, 1] -> in the units of the data: :meth:`MinMax.invert`."""

    low: Tensor
    span: Tensor

    def __init__(self, known: MinMax) -> None:
        super().__init__()
        low, high = torch.from_numpy(known.low), torch.from_numpy(known.high)
        self.register_buffer("low", low.clone())
        self.register_buffer("span", high - low)

    def forward(self, values: Tensor) -> Tensor:
        return (values + 1) / 2 * self.span + self.low


class HeadGraph(nn.Module):
    """What is observed -> actions (B, T_a, D), of a policy that draws no noise."""

    def __init__(self, policy: ParametricPolicy) -> None:
        super().__init__()
        spec, head = policy.spec, policy.head
        if head.sampling_noise(1, torch.Generator(), torch.device("cpu")):
            raise ConfigError(
                f"head {head.config.name!r} starts from noise, over several steps; only heads without are exported as "
                f"a graph, such as 'mlp'. Export its encoder alone."
            )
        if spec.history > 1:
            raise ConfigError(
                f"this policy decides from {spec.history} observations, a graph from 1. Export its encoder alone."
            )
        self.images, self.lowdim, self.head = EncoderGraph(policy.encoder), _LowDimGraph(policy.lowdim), head
        actions, decoder = policy.actions, policy.decoder
        self.scaled = nn.Sequential(_Inverse(actions))
        if decoder is not None:
            actions = decoder.actions
            self.scaled.extend((decoder, _Inverse(actions)))
        self.played = _PlayedGraph(spec.chunk_length, spec.speed, spec.action_space, len(actions.low))

    @property
    def names(self) -> list[str]:
        """Of the inputs."""
        return self.images.names + self.lowdim.names

    @property
    def outputs(self) -> list[str]:
        """Of the outputs."""
        return ["actions"]

    def examples(self) -> list[Tensor]:
        """One input of each name."""
        return self.images.examples() + self.lowdim.examples()

    def forward(self, *given: Tensor) -> Tensor:
        """Encode, predict, scale back; decode what are latent actions."""
        features = torch.cat([*self.images.parts(*given), *self.lowdim(*given[self.images.count :])], dim=1)
        chunks = self.head.generate(self.head.standardize(features), ())
        actions: Tensor = self.played(self.scaled(chunks))
        return actions


class RetrievalGraph(nn.Module):
    """What is observed -> actions (B, T_a, D), rows (B, k), cosine (B, k), weights (B, k): a decision without memory of
    earlier ones.
    """

    bank: Tensor
    rows: Tensor
    windows: Tensor
    actions: Tensor
    weight: Tensor

    def __init__(self, policy: RetrievalPolicy) -> None:
        super().__init__()
        latents = policy.latents
        if not isinstance(latents, ImageLatents):
            raise ConfigError(f"this policy compares latents of kind {latents.kind!r}, no images: it has no encoder.")
        spec, config = policy.spec, policy.config
        self.images, self.lowdim = EncoderGraph(latents.encoder), _LowDimGraph(latents.lowdim)
        dims = policy.actions.shape[1]
        self.played = _PlayedGraph(spec.chunk_length, spec.speed, spec.action_space, dims)
        bank, rows, windows = policy.searched()
        self.register_buffer("bank", torch.from_numpy(np.ascontiguousarray(bank.T)))
        self.register_buffer("rows", torch.from_numpy(rows))
        self.register_buffer("windows", torch.from_numpy(windows[rows][:, : self.played.steps]))
        self.register_buffer("actions", torch.from_numpy(policy.actions))
        weight = torch.ones(len(bank[0]))
        first = latents.encoder.feature_dim
        weight[first : first + len(latents.lowdim.range.low)] = config.proprioception_weight
        self.register_buffer("weight", weight)
        self.k, self.temperature = config.k, config.temperature

    @property
    def names(self) -> list[str]:
        """Of the inputs."""
        return self.images.names + self.lowdim.names

    @property
    def outputs(self) -> list[str]:
        """Of the outputs."""
        return ["actions", "neighbors", "cosine", "weights"]

    def examples(self) -> list[Tensor]:
        """One input of each name."""
        return self.images.examples() + self.lowdim.examples()

    def forward(self, *given: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Matrix product, the k largest, weighted mean."""
        z = torch.cat([*self.images.parts(*given), *self.lowdim(*given[self.images.count :])], dim=1)
        z = _unit(_unit(z) * self.weight)
        cosine, nearest = torch.topk(z @ self.bank, self.k, dim=1)
        weights = torch.softmax(cosine / self.temperature, dim=1)
        chunks = self.played(self.actions[self.windows[nearest]])
        mean = (weights[:, :, None, None] * chunks).sum(dim=1)
        return mean, self.rows[nearest], cosine, weights


def _unit(rows: Tensor) -> Tensor:
    return rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)


Graph = EncoderGraph | HeadGraph | RetrievalGraph
Exported = ImageEncoder | RetrievalPolicy | ParametricPolicy | MonitoredPolicy


def left_out(spec: PolicySpec) -> list[str]:
    """What a policy does beside making a decision from what is observed now, in words."""
    out, control = [], spec.control
    if spec.remembers:
        out.append("it keeps no memory, and decides as where an episode has not been before (revisit)")
    if spec.alarm is not None:
        out.append("it gives no novelty, and so neither alarm nor doubt")
    if control.execute is not None:
        out.append(f"of T_a = {spec.chunk_length} actions execute {control.execute} before the next decision")
    if control.ensemble is not None:
        out.append(
            f"average the actions that chunks propose for a step, the i-th oldest by exp(-{control.ensemble:g} i)"
        )
    return out


def export_onnx(what: Exported, file: Path) -> Path:
    """Write an encoder, or a policy that draws no noise, as an ONNX file; its metadata name what it is. Of a head
    beside a monitor it is the head; what a graph leaves out is logged.

    Raises:
        ConfigError: what a graph cannot compute.
        MissingDependencyError: the extra ``onnx`` is not installed.
        StorageError: the file cannot be written.
    """
    graph: Graph
    acting: Any = what.policy if isinstance(what, MonitoredPolicy) else what
    if isinstance(acting, ImageEncoder):
        graph = EncoderGraph(acting)
    elif isinstance(acting, ParametricPolicy):
        graph = HeadGraph(acting)
    else:
        graph = RetrievalGraph(acting)
    graph = graph.eval().cpu()
    size = sum(value.numel() * value.element_size() for value in (*graph.parameters(), *graph.buffers()))
    if size > LARGEST:
        raise ConfigError(
            f"weights and bank are {size / 1e9:.1f} GB, a file of ONNX holds {LARGEST / 1e9:g} GB. Export the encoder "
            f"alone, or a bank of fewer demonstrations."
        )
    program = _program(graph)
    encoder = graph.encoder if isinstance(graph, EncoderGraph) else graph.images.encoder
    about: dict[str, Any] = {
        "cameras": encoder.config.cameras,
        "image_size": encoder.config.image_size,
        "versions": versions(),
    }
    spec = None if isinstance(what, ImageEncoder) else what.spec
    missing = [] if spec is None else left_out(spec)
    if spec is not None and spec.schema is not None:
        about |= {"proprioception": spec.schema.proprioception, "language_source": spec.language_source}
        about |= {"speed": spec.speed, "left_out": missing}
    program.model.metadata_props["classact"] = json.dumps(about)
    with atomic_path(file) as temporary:
        program.save(str(temporary), external_data=False)
    if missing:
        logger.warning("%s is the decision alone: %s", file, "; ".join(missing))
    return file


def _program(graph: Graph) -> torch.onnx.ONNXProgram:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"export to ONNX needs the extra 'onnx' ({error}): pip install 'classact[onnx]'."
        ) from None
    batch, examples = torch.export.Dim("batch"), graph.examples()
    with torch.no_grad(), warnings.catch_warnings():
        # All inputs share their first axis, and so its name.
        warnings.filterwarnings("ignore", r"# The axis name: batch will not be used", UserWarning)
        program = torch.onnx.export(
            graph,
            tuple(examples),
            input_names=graph.names,
            output_names=graph.outputs,
            dynamic_shapes=(tuple({0: batch} for _ in examples),),  # one argument, which is variadic
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    if fixed := [one.name for one in program.model.graph.inputs if one.shape is None or isinstance(one.shape[0], int)]:
        raise ConfigError(
            f"the network fixes the number of rows of {fixed[0]!r} when traced: it reads sizes by len(x), not by "
            f"x.shape[0]. Change that, or export another one."
        )
    return program
