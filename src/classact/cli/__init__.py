"""The commands: one dataclass of flags and one function each. What they need is imported when they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from classact.cli.about import Doctor, Presets, doctor, presets
from classact.cli.compare import Compare, compare
from classact.cli.data import DataGenerate, DataInfo, data_generate, data_info
from classact.cli.finetune import Finetune, finetune
from classact.cli.probe import Probe, probe
from classact.cli.runs import Demo, Evaluate, Pretrain, Report, demo, evaluate, pretrain, report
from classact.cli.similarity import Similarity, measure_similarity

COMMANDS: dict[str, tuple[type[Any], Callable[[Any], int | None]]] = {
    "demo": (Demo, demo),
    "pretrain": (Pretrain, pretrain),
    "finetune": (Finetune, finetune),
    "evaluate": (Evaluate, evaluate),
    "report": (Report, report),
    "compare": (Compare, compare),
    "probe": (Probe, probe),
    "similarity": (Similarity, measure_similarity),
    "data info": (DataInfo, data_info),
    "data generate": (DataGenerate, data_generate),
    "presets": (Presets, presets),
    "doctor": (Doctor, doctor),
}
"""Name, of one word or two -> its flags and its function, which returns the exit status (None: 0)."""
