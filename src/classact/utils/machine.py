"""The machine that a result was made on: devices, hardware, versions."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classact.errors import ConfigError, UnknownNameError, choose

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> str:
    """ "cpu" or "cuda" for a device setting; "auto" takes a GPU if torch sees one.

    Raises:
        ConfigError: an unknown name, or "cuda" where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UnknownNameError(choose("device", name, ("auto", "cpu", "cuda")))
    import torch

    if name != "auto":
        return check_device(name).type
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str | torch.device) -> torch.device:
    """A device that networks can be moved to: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: an unknown name, or a GPU that torch does not see.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnknownNameError(choose("device", str(name), ("cpu", "cuda", "cuda:N"))) from None
    if device.type == "cuda":
        seen = "" if torch.cuda.is_available() else "no GPU"
        if not seen and device.index is not None and device.index >= (count := torch.cuda.device_count()):
            seen = f"{count} of them, numbered from 0"
        if seen:
            raise ConfigError(
                f"device {str(device)!r} was asked for, but torch sees {seen}. Use another device, such as 'cpu', or "
                f"see 'classact doctor'."
            )
    return device


def versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    names = (
        "classact",
        "torch",
        "torchvision",
        "triton",
        "diffusers",
        "accelerate",
        "numpy",
        "numba",
        "pymunk",
        "gym-pusht",
        "opencv-python",
    )
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
