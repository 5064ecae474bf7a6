"""Numba starts its threads and leaves OpenMP's number, which torch computes with, as it was."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
if "torch first" in sys.argv:
    import torch
    torch.set_num_threads(3)
    assert torch.get_num_threads() == 3  # in use from here on
import numpy as np
from classact.similarity.pairwise import dtw_pairwise
dtw_pairwise(np.zeros((50, 16, 2), np.float32))
import numba, torch
assert numba.get_num_threads() == 2, numba.get_num_threads()
print(torch.get_num_threads())
"""


@pytest.mark.parametrize(("order", "expected"), [("torch first", "3"), ("torch last", "1")])
def test_numba_leaves_torch_its_threads(order: str, expected: str) -> None:
    """torchrun gives each rank OMP_NUM_THREADS=1; ``torch.set_num_threads`` is a user's own wish."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, order], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")
