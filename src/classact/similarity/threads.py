"""Numba's threads, started without a change to anyone else's.

When numba starts its OpenMP threads it sets the process's number of OpenMP threads to its own. That number is torch's,
too: a training that measured its similarity would go on with other threads than one that read it from the cache, so
that its sums would end in other bits, and under torchrun every rank would take every core.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from typing import Any

import numba as nb


@functools.cache
def start_threads() -> None:
    """Start numba's threads, once; the OpenMP threads of torch and others stay as many as they were."""
    try:
        from numba.np.ufunc import omppool
    except ImportError:  # no OpenMP here: numba has threads of its own
        return
    # Torch's wheels bring an OpenMP of their own, which is numba's, too, where torch was imported first.
    torch = sys.modules.get("torch")
    if torch is not None:
        threads = torch.get_num_threads()
        nb.get_num_threads()
        torch.set_num_threads(threads)
    else:
        openmp = ctypes.CDLL(omppool.__file__)
        threads = openmp.omp_get_max_threads()
        nb.get_num_threads()
        openmp.omp_set_num_threads(threads)


def parallel(compiled: Callable[..., None]) -> Callable[..., None]:
    """A function that numba compiled with ``parallel=True``, to be called from Python."""

    @functools.wraps(compiled, updated=())
    def call(*arguments: Any) -> None:
        start_threads()
        compiled(*arguments)

    return call
