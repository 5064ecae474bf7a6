"""The backend that sweeps over all pairs."""

from __future__ import annotations

import logging

from classact.errors import ConfigError, UnknownNameError, choose
from classact.similarity.cpu import CpuSweep
from classact.similarity.stream import InOrder, Sweep, WindowStream

DEVICES = ("auto", "cpu", "cuda")


def make_sweep(
    stream: WindowStream, *, cost: str = "sqeuclidean", band: int | None = None, device: str = "auto"
) -> Sweep:
    """A sweep over all window pairs on "cpu", "cuda", or "auto": a GPU if there is a usable one.

    Raises:
        ConfigError: an unknown device, "cuda" without a GPU, or settings that no backend knows.
    """
    if device not in DEVICES:
        raise UnknownNameError(choose("device", device, DEVICES))
    if stream.stride > 1:
        return InOrder(stream, lambda laid: _backend(laid, cost, band, device))
    return _backend(stream, cost, band, device)


def _backend(stream: WindowStream, cost: str, band: int | None, device: str) -> Sweep:
    if device != "cpu" and (device == "cuda" or _has_gpu()):
        from classact.similarity.gpu import GpuSweep

        try:
            return GpuSweep(stream, cost=cost, band=band)
        except ConfigError as error:
            if device == "cuda":
                raise
            logging.getLogger("classact").warning("the CPU sweeps over all pairs: %s", error)
    return CpuSweep(stream, cost=cost, band=band)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
