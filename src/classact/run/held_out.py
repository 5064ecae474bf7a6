"""How far a run's policies are from what was done in held-out demonstrations: one table, over the same steps."""

from __future__ import annotations

import logging
from typing import Any

from classact.evaluation.actions import action_error, references
from classact.policies import RetrievalPolicy
from classact.run import analysis
from classact.run.data import RunData
from classact.run.folder import Run
from classact.run.load import load_head
from classact.utils.progress import progress_bar

logger = logging.getLogger(__name__)

RETRIEVAL = "retrieval"


def compare_actions(run: Run, name: str, source: RunData, device: str, *, quiet: bool) -> None:
    """Measure a policy on held-out demonstrations and keep its errors in the run's table, beside those of retrieval and
    of ways that learn nothing.

    All are over the T_a steps of retrieval, or over the T_p of a head of the table that plans fewer. Rows that are
    missing, or were measured over other steps, are measured as well. Policies act at the demonstrations' own speed.

    Args:
        run: whose table it is.
        name: of the policy: "retrieval", or that of a head's folder.
        source: the run's data, with images as this policy sees them.
        device: where policies compute.
        quiet: no progress bars.
    """
    settings, known = run.settings(), {row.policy: row.steps for row in run.read_actions()}
    heads = [one for one in dict.fromkeys((*known, name)) if (run.heads / one / "policy").is_dir()]
    steps = min([settings.retrieval.chunk_length, *(run.head_settings(head).finetune.horizon for head in heads)])
    there = [RETRIEVAL, *heads] if run.policy.is_dir() else heads
    for one in there:
        if one != name and known.get(one) == steps:
            continue
        how: dict[str, Any] = {"device": device, "chunk_length": steps, "speed": 1.0}
        policy: Any = RetrievalPolicy.load(run.policy, **how) if one == RETRIEVAL else load_head(run, one, **how)
        # A head's encoder may have other cameras and sizes than the run's.
        seen = settings.pretrain.encoder if one == RETRIEVAL else policy.encoder.config
        held = (source if one == name else RunData(settings, seen, quiet=quiet)).held_out(steps)
        if not len(held.rows):
            logger.warning("no held-out demonstration carries actions: there is nothing to compare with")
            return
        with progress_bar(f"compare held-out actions: {one}", quiet=quiet) as bar:
            rows = [action_error(policy, held, one, bar), *(references(held) if one == RETRIEVAL else ())]
        analysis.write_actions(run, rows)
