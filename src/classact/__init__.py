"""classact: behaviour-aligned visual representations from demonstrations, and policies you can see the reasons of.

CLASS (arXiv 2508.01600): observations that lead to similar future action sequences lie close, whatever they look like.
"""

from classact.data.types import Demonstrations, Episode, Observation
from classact.errors import ClassactError

__version__ = "0.1.0"

__all__ = ["ClassactError", "Demonstrations", "Episode", "Observation", "__version__"]
