"""Peak memory of an exact sweep, in a process of its own: ``python benchmarks/memory.py N T D K``.

Prints one line of JSON. Called by the similarity benchmark; what counts is memory beyond the data, the imported
packages and the compiled code.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from classact.similarity.config import SimilarityConfig
from classact.similarity.distribution import DistanceDistribution
from classact.similarity.model import fit_distribution
from classact.similarity.stream import WindowStream
from classact.similarity.sweep import make_sweep
from similarity import walks


def peak_bytes() -> int:
    """Largest resident memory of this process since :func:`forget_peak`, or ever where the system keeps no other."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Begin a new peak, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return


def sweep(n: int, T: int, D: int, quantile: float) -> DistanceDistribution:
    """Threshold and CDF of all pairs of ``n`` windows."""
    config = SimilarityConfig(horizon=T, quantile=quantile, estimate="exact")
    actions, ends = walks(n, D)
    stream = WindowStream.build(actions, ends, T)
    return fit_distribution(stream, make_sweep(stream, device="cpu"), config)


def main(arguments: list[str]) -> None:
    """Measure and print."""
    n, T, D = (int(value) for value in arguments[:3])
    quantile = float(arguments[3])
    sweep(2000, T, D, quantile)  # compiles
    config = SimilarityConfig(horizon=T, quantile=quantile, estimate="exact")
    actions, ends = walks(n, D)
    stream = WindowStream.build(actions, ends, T)
    backend = make_sweep(stream, device="cpu")
    forget_peak()
    before = peak_bytes()
    begin = time.perf_counter()
    found = fit_distribution(stream, backend, config)
    seconds = time.perf_counter() - begin
    row = {
        "windows": n,
        "horizon": T,
        "dimensions": D,
        "quantile": quantile,
        "pairs": found.pairs,
        "kept": found.kept,
        "threshold": found.threshold,
        "seconds": seconds,
        "peak_beyond_data_mib": (peak_bytes() - before) / 2**20,
        "data_mib": (actions.nbytes + stream.values.nbytes + stream.points.nbytes) / 2**20,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1:])
