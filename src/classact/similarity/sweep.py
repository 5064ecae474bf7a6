"""The backend that sweeps over all pairs."""

from __future__ import annotations

from classact.errors import ConfigError, choose
from classact.similarity.cpu import CpuSweep
from classact.similarity.stream import Sweep, WindowStream

DEVICES = ("auto", "cpu", "cuda")


def make_sweep(
    stream: WindowStream, *, cost: str = "sqeuclidean", band: int | None = None, device: str = "auto"
) -> Sweep:
    """A sweep over all pairs of a stream's windows.

    Args:
        stream: the windows.
        cost: step cost.
        band: Sakoe-Chiba band in steps; None for none.
        device: "cpu", "cuda", or "auto": a GPU if there is one.

    Raises:
        ConfigError: an unknown device, "cuda" where there is none, or settings that no backend knows.
    """
    if device not in DEVICES:
        raise ConfigError(choose("device", device, DEVICES))
    if device == "auto":
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        from classact.similarity.gpu import GpuSweep

        return GpuSweep(stream, cost=cost, band=band)
    return CpuSweep(stream, cost=cost, band=band)
