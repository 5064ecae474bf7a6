"""Did batches that are filled with positives from a stored graph beat the queue, at the same number of images?

Push-T, human demonstrations, the protocol of pusht_comparison.py: 500,000 images, 186 demonstrations, k and tau chosen
on the same tuning episodes, 400 evaluation episodes. Rows with plain batches and with the queue are those of
results/pusht_comparison.json; the ones with positive-aware batches were trained by the first version of this script
(git log) with classact of the commit "measured_with" in the results. They did not, and the graph is gone; what is left
are the statistics:

    uv run python benchmarks/positive_batches.py
"""

from __future__ import annotations

from typing import Any

import numpy as np

from classact.utils.statistics import difference_over_seeds, permutation_p, success_over_seeds
from classact.utils.storage import read_json, write_json
from common import RESULTS, mcnemar_p
from pusht_comparison import BOTH, QUEUE, WHITENING
from pusht_comparison import FILE as COMPARISON
from table1 import Cell
from table1.methods import parse_method

FILE = RESULTS / "positive_batches.json"

COLUMNS = {"fixed": ("class", QUEUE), "rand": (f"class[{WHITENING}]", BOTH)}
"""Column -> methods of the comparison with plain batches, and with the queue."""

PLAIN, WITH_QUEUE, AWARE = "plain batches", "queue of 1,280", "positive-aware batches"

NOTES = (
    "Rows with plain batches and with the queue are those of pusht_comparison.json: the same protocol, budget, seeds, "
    "versions of packages and evaluation episodes, measured earlier on another machine of this kind, not again here.",
    "The number of positives drawn for each anchor is the one with most successes on the 20 tuning episodes after "
    "50,000 images under fixed colours, ties by mean coverage; both columns take it.",
    "Intervals and p-values are about evaluation episodes, not about training seeds; p-values are not corrected for "
    "their number.",
)


def compared(column: str) -> list[dict[str, Any]]:
    """Rows of the comparison in a column: plain batches and the queue, of all seeds that are there."""
    cells = read_json(COMPARISON)["cells"]
    out = []
    for batches, method in zip((PLAIN, WITH_QUEUE), COLUMNS[column], strict=True):
        for seed in range(10):
            name = Cell(parse_method(method), column=column, seed=seed).name
            cell = cells.get(name)
            if cell is not None and cell["status"] == "done":
                out.append({"column": column, "batches": batches, "cell": name} | cell)
    return out


def summarize(results: dict[str, Any]) -> dict[str, Any]:
    """Success of each kind of batches with its interval, and differences with theirs and exact p-values."""
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {"success": [], "differences": [], "of_one_seed": []}
    for column in COLUMNS:
        rows = [*compared(column), *(row for row in results["rows"] if row["column"] == column)]
        for criterion in ("iou>0.90", "coverage>0.90"):
            of = {
                kind: {row["seed"]: np.array(row["success"][criterion]) for row in rows if row["batches"] == kind}
                for kind in (PLAIN, WITH_QUEUE, AWARE)
            }
            where = {"column": column, "criterion": criterion}
            stacked = {kind: np.stack(list(found.values())) for kind, found in of.items() if found}
            for kind, outcomes in stacked.items():
                found = success_over_seeds(outcomes, rng)
                each = {str(seed): int(one.sum()) for seed, one in of[kind].items()}
                out["success"].append(where | {"batches": kind, "successes_by_seed": each} | rounded(found))
            for other in (WITH_QUEUE, PLAIN):
                if AWARE not in stacked or other not in stacked:
                    continue
                pair = where | {"first": AWARE, "second": other}
                first, second = stacked[AWARE], stacked[other]
                p = {"p": permutation_p(first, second), "trainings": [len(first), len(second)]}
                out["differences"].append(pair | rounded(difference_over_seeds(first, second, rng)) | p)
                for seed in of[AWARE].keys() & of[other].keys():
                    a, b = of[AWARE][seed], of[other][seed]
                    won, lost = int((a > b).sum()), int((a < b).sum())
                    out["of_one_seed"].append(
                        pair | {"seed": seed, "won": won, "lost": lost, "mcnemar_p": mcnemar_p(won, lost)}
                    )
    return out


def rounded(estimate: Any) -> dict[str, float]:
    """An estimate with its 95 % interval."""
    return {key: round(getattr(estimate, key), 4) for key in ("value", "low", "high")}


def main() -> None:
    results = read_json(FILE)
    write_json(FILE, results | {"notes": list(NOTES), "summary": summarize(results)})


if __name__ == "__main__":
    main()
