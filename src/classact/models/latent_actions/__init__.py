"""Latent actions (CLAM, arXiv 2505.04999): what leads from one observation to the next, learned without actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from classact.models.latent_actions.config import LatentActionConfig as LatentActionConfig
from classact.utils.lazy import attach

if TYPE_CHECKING:
    from classact.models.latent_actions.decoder import ActionDecoder as ActionDecoder
    from classact.models.latent_actions.model import LatentActionModel as LatentActionModel

__getattr__, __dir__ = attach(__name__, __file__)
