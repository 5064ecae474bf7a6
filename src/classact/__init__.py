"""classact: behaviour-aligned visual representations from demonstrations, and policies you can see the reasons of.

CLASS (arXiv 2508.01600): observations that lead to similar future action sequences lie close, whatever they look like.
"""

import os
import tempfile
from pathlib import Path

from classact.data.types import Demonstrations, Episode, Observation
from classact.errors import ClassactError
from classact.utils.machine import prepare_threads

prepare_threads()  # before torch or numba is imported: they read it once

__version__ = "0.1.0"

if not {"NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT"} & os.environ.keys():
    # Numba keeps what it compiled beside the code or in the home folder, and refuses to be imported where it can write
    # to neither: an installation of another user's, and no home.
    _places = [Path(__file__).parent, Path(os.path.expanduser("~"))]  # noqa: PTH111
    if not any(place.is_absolute() and os.access(place, os.W_OK) for place in _places):
        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="classact-numba-")

__all__ = ["ClassactError", "Demonstrations", "Episode", "Observation", "__version__"]
