"""How objectives, sums of them and what they taught are written. Without torch: pages are made with it, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RANDOM = "random"
"""How tables name an encoder of random weights that a run is about."""


def written_name(settings: Mapping[str, Any]) -> str:
    """How an objective is written, ``class`` or ``class+0.1*byol``, from its settings as plain values.

    Args:
        settings: with "name"; of a sum with "parts" and "weights". Without a name they are of a run from before there
            was a choice: "class".
    """
    if settings.get("name", "class") != "combined":
        return str(settings.get("name", "class"))
    terms = zip(settings["parts"], settings["weights"], strict=True)
    return "+".join(part["name"] if weight == 1 else f"{weight:g}*{part['name']}" for part, weight in terms)


def learned_label(settings: Mapping[str, Any]) -> str:
    """How tables name the encoder of a run, from the settings in its folder: by its objective, and where nothing was
    trained by its initial weights."""
    pretrain = settings["pretrain"]
    name = written_name(pretrain.get("objective", {}))
    init = str(pretrain["encoder"]["init"])
    return name if name != "none" else {"scratch": RANDOM}.get(init, init)
