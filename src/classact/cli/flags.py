"""Flags that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

Layout = Annotated[
    Path | None, tyro.conf.arg(help="JSON file that says which array of the data is what (docs/policies.md).")
]
Execute = Annotated[
    int | None, tyro.conf.arg(help="Receding horizon: execute only so many actions of a chunk. Default: all T_a.")
]
Ensemble = Annotated[
    float | None,
    tyro.conf.arg(help="Temporal ensembling: m of the weights exp(-m i), with --execute. Default: none."),
]
