"""Sampling without the cost of launching: the whole loop recorded once as a CUDA graph, the U-Net compiled.

A denoising pass is hundreds of small kernels, and a GPU waits for the processor between them. A CUDA graph holds them
all, and one call replays them on buffers that stay where they are. On a CPU the U-Net can be compiled.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from classact.errors import ConfigError
from classact.models.heads.base import Generators, Head


class Recording(Protocol):
    """A function of no arguments that was run once and can be repeated on the same memory."""

    output: Tensor
    """What it returns; overwritten by each replay."""

    def replay(self) -> None:
        """Do all of it again."""


Recorder = Callable[[Callable[[], Tensor]], Recording]


class CudaRecording:
    """A :class:`Recording` as a CUDA graph.

    Args:
        function: tensor operations on one GPU, on tensors that stay where they are.
        device: that GPU.
        warm_ups: calls before recording, on a stream of their own, in which libraries choose their kernels and
            allocate what they keep.
    """

    def __init__(self, function: Callable[[], Tensor], device: torch.device, warm_ups: int = 3) -> None:
        self.device = device
        with torch.cuda.device(device):
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(warm_ups):
                    function()
            torch.cuda.current_stream().wait_stream(side)
            self.graph = torch.cuda.CUDAGraph()
            # Other threads (a loader that pins memory, say) may go on calling CUDA meanwhile.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.output = function()

    def replay(self) -> None:
        """Launch the graph on the GPU's current stream."""
        with torch.cuda.device(self.device):
            self.graph.replay()


class Replay:
    """A function of tensors, recorded on buffers of its own: arguments are copied in, the result is copied out.

    Args:
        function: of as many tensors as ``inputs``.
        inputs: of the shapes and types that all later calls will have.
        device: where the buffers are.
        record: how to record.
    """

    def __init__(
        self, function: Callable[..., Tensor], inputs: tuple[Tensor, ...], device: torch.device, record: Recorder
    ) -> None:
        self.inputs = tuple(torch.empty_like(given, device=device).copy_(given) for given in inputs)
        self.recording = record(lambda: function(*self.inputs))

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function of these inputs, as a tensor that later calls leave alone."""
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.recording.replay()
        return self.recording.output.clone()


class FastSampler:
    """``head.sample``, faster: the same chunks from the same generators, up to rounding.

    On a GPU one graph is recorded for each batch size. Weights are read where they lie: changed in place (an
    optimiser's step, ``load_state_dict``) they count at once, moved elsewhere they make the graphs be recorded again.
    Where recording or compiling fails, sampling goes on without, and :attr:`notes` says why.

    Args:
        head: the head.
        compiled: compile the U-Net with ``torch.compile``. The first call of each batch size then takes up to a
            minute, and needs a C++ compiler on a CPU.
        capture: record graphs, where the head is on a GPU.
        patience: calls of a batch size that are not yet recorded; sizes that come up once are not worth a graph.
            :meth:`prepare` records at once.
        graphs: how many batch sizes are kept, the least recently used goes first.
        recorder: what records, whatever the device; None takes :class:`CudaRecording` on GPUs and nothing elsewhere.

    Attributes:
        notes: what was given up, and why.

    Raises:
        ConfigError: settings out of range.
    """

    def __init__(
        self,
        head: Head,
        *,
        compiled: bool = False,
        capture: bool = True,
        patience: int = 2,
        graphs: int = 8,
        recorder: Recorder | None = None,
    ) -> None:
        if patience < 0 or graphs < 1:
            raise ConfigError(f"expected patience >= 0 and graphs >= 1, got {patience} and {graphs}.")
        self.head, self.capture, self.patience, self.graphs = head, capture, patience, graphs
        self.notes: list[str] = []
        self._recorder = recorder
        self._network: Callable[..., Tensor] | None = torch.compile(head.unet, dynamic=False) if compiled else None
        self._parameters = tuple(head.parameters())
        self._places: tuple[int, ...] = ()
        self._replays: OrderedDict[Any, Replay] = OrderedDict()
        self._calls: dict[Any, int] = {}
        self._sizes: set[int] = set()

    @property
    def mode(self) -> str:
        """What calls have come to: "eager", "compiled", "captured" or "compiled, captured"."""
        parts = [*(["compiled"] if self._network is not None else []), *(["captured"] if self._replays else [])]
        return ", ".join(parts) or "eager"

    def reset(self) -> None:
        """Forget all graphs, and free their memory."""
        self._replays.clear()
        self._calls.clear()

    def prepare(self, batch: int) -> None:
        """Compile and record now for a batch size, so that the first decisions are as fast as the later ones."""
        device = self._parameters[0].device
        for _ in range(1 if self._records(device) is None else self.patience + 1):
            self.sample(torch.zeros(batch, self.head.feature_dim, device=device), torch.Generator())

    def _records(self, device: torch.device) -> Recorder | None:
        if not self.capture:
            return None
        return self._recorder or (partial(CudaRecording, device=device) if device.type == "cuda" else None)

    def sample(self, features: Tensor, generator: Generators) -> Tensor:
        """Chunks (B, T_p, D) of normalised actions for (B, C) features, on the head's device; without gradient.

        Raises:
            ConfigError: as :meth:`classact.models.heads.Head.sample`.
        """
        self.head.check(features, generator=generator)
        device = self._parameters[0].device
        # Buffers made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            noise = self.head.sampling_noise(len(features), generator, device)
            return self._sample((features.to(device), *noise), device)

    def _sample(self, inputs: tuple[Tensor, ...], device: torch.device) -> Tensor:
        places = tuple(parameter.data_ptr() for parameter in self._parameters)
        if places != self._places:
            self.reset()
            self._places = places
        kind = device.type
        key = (len(inputs[0]), inputs[0].dtype, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
        if key in self._replays:
            self._replays.move_to_end(key)
            return self._replays[key](*inputs)
        before = self._calls[key] = self._calls.get(key, -1) + 1
        recorder = self._records(device)
        if recorder is None or before < self.patience or not len(inputs[0]):
            return self._generate(*inputs)
        try:
            replay = Replay(self._generate, inputs, device, recorder)
        except RuntimeError as error:
            self.capture = False
            self.notes.append(f"not captured as a graph: {type(error).__name__}: {error}")
            return self._generate(*inputs)
        while len(self._replays) >= self.graphs:
            oldest, _ = self._replays.popitem(last=False)
            del self._calls[oldest]
        self._replays[key] = replay
        return replay(*inputs)

    def _generate(self, features: Tensor, *noise: Tensor) -> Tensor:
        if self._network is not None and len(features):
            try:
                return self._compiled(features, noise, self._network)
            except Exception as error:  # compilers fail in ways of their own; what the head itself raises comes again
                self._network = None
                first = (str(error).strip() or "no message").splitlines()[0]
                self.notes.append(f"not compiled: {type(error).__name__}: {first}")
        return self.head.generate(features, noise)

    def _compiled(self, features: Tensor, noise: tuple[Tensor, ...], network: Callable[..., Tensor]) -> Tensor:
        if len(features) in self._sizes:
            return self.head.generate(features, noise, network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # compilers advise on settings that are not ours to change
            out = self.head.generate(features, noise, network)
        self._sizes.add(len(features))
        return out
