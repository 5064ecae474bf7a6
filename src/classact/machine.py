"""The machine that a result was made on: devices, hardware, versions."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from classact.errors import ConfigError, choose


def choose_device(name: str) -> str:
    """ "cpu" or "cuda" for a device setting; "auto" takes a GPU if torch sees one.

    Raises:
        ConfigError: an unknown name, or "cuda" where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ConfigError(choose("device", name, ("auto", "cpu", "cuda")))
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "device 'cuda' was asked for, but torch sees no GPU. Use device 'cpu', or see 'classact doctor'."
        )
    return "cuda" if available and name != "cpu" else "cpu"


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = ("classact", "torch", "torchvision", "triton", "numpy", "numba", "pymunk", "gym-pusht", "opencv-python")
    out = {"python": platform.python_version()}
    for name in names:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def hardware() -> dict[str, Any]:
    """Processor, cores and GPU of this machine."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    except OSError:
        pass
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": torch.get_num_threads(), "gpu": gpu, "platform": platform.platform()}
