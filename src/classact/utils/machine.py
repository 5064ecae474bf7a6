"""The machine that a result was made on: devices, hardware, versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from classact.errors import ConfigError, UnknownNameError, choose

if TYPE_CHECKING:
    import torch

CGROUP, OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Linux's limits of this process, in a container or a job (control groups, versions 1 and 2)."""


def cores() -> int:
    """Cores that this process may use, at least 1: PYTHON_CPU_COUNT, else those of its affinity mask, but at most the
    quota of its container or job, rounded up.
    """
    said = os.environ.get("PYTHON_CPU_COUNT", "")
    if said.isdigit() and int(said):
        return int(said)
    return max(1, min([_scheduled(), *_quotas()]))


def _scheduled() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):  # not on macOS and Windows
        return os.cpu_count() or 1


def _quotas() -> Iterator[int]:
    for group in _control_groups("cpu"):
        words = _words(group / "cpu.max")
        words = words or [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
        if len(words) == 2 and all(word.isdigit() and int(word) for word in words):  # else "max" or -1: no limit
            yield -(-int(words[0]) // int(words[1]))


def memory_limits() -> list[tuple[int, int]]:
    """(free, total) bytes under each memory limit of this process's container or job."""
    found = []
    for group in _control_groups("memory"):
        limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        if not all(len(words) == 1 and words[0].isdigit() for words in (limit, used)):
            continue
        words = _words(group / "memory.stat")
        stat = dict(zip(words[::2], words[1::2], strict=False))
        # The page cache counts as used, but gives way. Version 1 counts sub-groups separately.
        files = sum(int(stat.get(f"total_{name}", stat.get(name, 0))) for name in ("active_file", "inactive_file"))
        found.append((max(0, int(limit[0]) - int(used[0]) + files), int(limit[0])))
    return found


def _control_groups(controller: str) -> Iterator[Path]:
    """Folders of the groups that this process is in, each within the next; a container sees its own as the root."""
    yield from (CGROUP, CGROUP / controller)
    try:
        lines = OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        inner = PurePosixPath(path.lstrip("/"))
        if ".." not in inner.parts:  # a group outside of this mount
            yield from (CGROUP / (controller if controllers else "") / part for part in (inner, *inner.parents))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []


def prepare_threads() -> None:
    """How threads of torch, numba and other libraries wait, and how many there are, unless the user chose.

    Child processes inherit it; libraries that were already imported do not change.
    """
    # Threads that spin at barriers take the time of other processes, and of each other.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if (count := cores()) < _scheduled():  # the libraries know the affinity mask, but no quota
        for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            os.environ.setdefault(variable, str(count))


def choose_device(name: str) -> str:
    """ "cpu" or "cuda" for a device setting; "auto" is a GPU if torch sees one.

    An unknown name, or "cuda" without a GPU, is a ConfigError.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UnknownNameError(choose("device", name, ("auto", "cpu", "cuda")))
    import torch

    if name != "auto":
        return check_device(name).type
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(name: str | torch.device) -> torch.device:
    """A device that networks can be moved to, "cpu", "cuda" or "cuda:1"; a ConfigError where torch does not see it."""
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
    """Versions of the packages that results depend on."""
    names = "classact torch torchvision triton accelerate numpy numba pymunk gym-pusht opencv-python"
    out = {"python": platform.python_version()}
    for name in names.split():
        with suppress(metadata.PackageNotFoundError):
            out[name] = metadata.version(name)
    return out


def hardware() -> dict[str, Any]:
    """Processor, cores and GPU of this machine."""
    import torch

    cpu = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"cpu": cpu, "cores": torch.get_num_threads(), "gpu": gpu, "platform": platform.platform()}
