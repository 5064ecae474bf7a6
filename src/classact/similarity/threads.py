"""Numba's threads, started without side effects on torch's.

When numba starts its OpenMP threads it sets the process's number of OpenMP threads, which is torch's, too: a training
that measured its similarity would run on other threads than one that read it from the cache, with other rounding, and
under torchrun every rank would take every core.
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
    """Start numba's threads, once; other users of OpenMP keep their number of threads."""
    try:
        from numba.np.ufunc import omppool
    except ImportError:  # no OpenMP here: numba has threads of its own
        return
    # Torch's wheels bring an OpenMP of their own, which numba shares where torch was imported first.
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
    """Make a function compiled with ``parallel=True`` callable from Python with its threads started."""

    @functools.wraps(compiled, updated=())
    def call(*arguments: Any) -> None:
        start_threads()
        compiled(*arguments)

    return call
