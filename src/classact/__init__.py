"""classact: behaviour-aligned visual representations from demonstrations, and policies with visible reasons.

CLASS (arXiv 2508.01600): observations that lead to similar future action sequences lie close, whatever they look like.
"""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from classact.data.types import Demonstrations as Demonstrations
from classact.data.types import Episode as Episode
from classact.data.types import Observation as Observation
from classact.errors import ClassactError as ClassactError
from classact.utils.lazy import attach
from classact.utils.machine import prepare_threads

if TYPE_CHECKING:
    from classact.api import configure as configure
    from classact.api import evaluate as evaluate
    from classact.api import finetune as finetune
    from classact.api import latent_actions as latent_actions
    from classact.api import load_policy as load_policy
    from classact.api import pretrain as pretrain
    from classact.api import read as read
    from classact.api import report as report
    from classact.run.config import RunConfig as RunConfig
    from classact.run.folder import Run as Run

prepare_threads()  # before torch or numba is imported: they read it once

__version__ = "0.1.0"

if not {"NUMBA_CACHE_DIR", "NUMBA_DISABLE_JIT"} & os.environ.keys():
    # Numba caches compiled code beside the source or in the home folder, and refuses to be imported where neither is
    # writable.
    _places = [Path(__file__).parent, Path(os.path.expanduser("~"))]  # noqa: PTH111
    if not any(place.is_absolute() and os.access(place, os.W_OK) for place in _places):
        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(prefix="classact-numba-")

__getattr__, __dir__ = attach(__name__, __file__)
