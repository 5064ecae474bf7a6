"""What the paper (arXiv 2508.01600) reports, as data: Table 1, and the inference times of appendix I."""

from __future__ import annotations

from classact.errors import UnknownNameError, choose

TASKS = ("square", "three-stack", "aloha-transfer", "libero-object", "pusht")
"""Tasks of Table 1, by our names, in its order."""

SHIFTS = ("fixed", "rand")
"""Columns of each task: as recorded, and with visual shift."""

HEADS = ("rep", "mlp", "mlp-rep", "dp", "dp-rep")
"""Groups of rows: Rep-Only, MLP, Diffusion Policy; and retrieval with the encoders beneath these, which the table calls
non-parametric."""

METHODS = ("random", "imagenet", "r3m", "tcn", "byol", "dynamo", "equivar", "class")
"""Rows, in the order of the table; "byol" is VINN's representation."""

PROTOCOL = "ResNet-18 from ImageNet weights, 256 px, maximum over ten checkpoints, mean of three seeds"
"""How the paper obtained its numbers (section 5, caption of Table 1): not how ours are obtained."""

INFERENCE_MS = {"rep": 5.5, "mlp": 7.3, "mlp-rep": 5.5, "dp": 84.4, "dp-rep": 5.5}
"""Milliseconds per decision by head (appendix I): means over tasks, on an NVIDIA A40."""

# Fixed and shifted per task, tasks as in TASKS. Heads: evaluated without the head / with it; "-": not reported.
_TABLE = """
rep imagenet|0.20 0.00|0.00 0.00|0.26 0.02|0.82 0.59|0.00 0.00
rep r3m     |0.04 0.00|0.02 0.00|0.28 0.00|0.57 0.56|0.00 0.00
rep tcn     |0.53 0.07|0.28 0.01|0.17 0.00|0.90 0.92|0.04 0.02
rep byol    |0.13 0.04|0.00 0.00|0.13 0.02|0.92 0.62|0.00 0.01
rep dynamo  |0.01 0.00|0.00 0.00|0.11 0.09|0.58 0.57|0.00 0.02
rep class   |0.93 0.70|0.94 0.77|0.91 0.56|0.99 0.99|0.85 0.66
mlp imagenet|0.61/0.91 0.11/0.18|0.31/0.91 0.05/0.36|0.25/1.00 0.10/0.33|0.99/1.00 0.60/0.46|0.66/0.87 0.21/0.27
mlp class   |0.88/0.95 0.67/0.62|0.62/0.93 0.61/0.80|0.72/1.00 0.52/0.78|1.00/0.99 1.00/0.96|0.82/0.89 0.69/0.64
dp random   |0.45/0.85 0.06/0.06|0.53/0.86 0.05/0.38|0.32/1.00 0.11/0.15|0.99/0.91 0.57/0.04|0.62/0.89 0.04/0.16
dp imagenet |0.72/0.91 0.09/0.21|0.86/0.94 0.07/0.61|0.37/1.00 0.09/0.20|1.00/0.97 0.64/0.19|0.70/0.92 0.15/0.53
dp r3m      |0.42/0.88 0.04/0.14|0.36/0.84 0.02/0.36|0.35/1.00 0.10/0.09|0.99/0.94 0.60/0.12|0.65/0.89 0.00/0.05
dp tcn      |0.78/0.91 0.17/0.34|0.85/0.93 0.12/0.71|0.52/1.00 0.11/0.33|0.98/0.99 0.95/0.96|0.69/0.96 0.33/0.49
dp byol     |0.57/0.87 0.07/0.07|0.63/0.88 0.01/0.22|0.39/1.00 0.08/0.15|0.92/0.99 0.57/0.06|0.66/0.93 0.13/0.06
dp dynamo   |0.39/0.80 0.07/0.05|0.48/0.81 0.02/0.28|0.82/0.88 0.17/0.23|0.96/0.99 0.46/0.40|0.67/0.90 0.06/0.24
dp equivar  |0.77/0.94 0.03/0.08|0.43/0.95 0.06/0.36|- -                |0.99/0.99 0.61/0.10|- -
dp class    |0.91/0.95 0.64/0.68|0.89/0.97 0.76/0.93|0.83/0.99 0.61/0.95|1.00/0.99 1.00/0.97|0.81/0.96 0.69/0.70
"""


def _table() -> dict[tuple[str, str, str, str], float]:
    cells: dict[tuple[str, str, str, str], float] = {}
    for line in _TABLE.strip().splitlines():
        names, *columns = line.split("|")
        head, method = names.split()
        # Of a head, what its encoder reaches without it comes first.
        heads = (head,) if head == "rep" else (f"{head}-rep", head)
        for task, column in zip(TASKS, columns, strict=True):
            for shift, text in zip(SHIFTS, column.split(), strict=True):
                if text != "-":
                    values = map(float, text.split("/"))
                    cells |= {(task, shift, method, name): v for name, v in zip(heads, values, strict=True)}
    return cells


TABLE_1 = _table()
"""(task, shift, method, head) -> success rate; cells that the paper leaves empty are not there."""


def paper_cell(task: str, shift: str, method: str, head: str) -> float | None:
    """The paper's number, None where Table 1 has none (other tasks, methods, and empty cells)."""
    return TABLE_1.get((task, shift, method, head))


def paper_methods(task: str, head: str) -> list[str]:
    """Methods with a number for a task and a head, in the order of the table; empty for tasks that it lacks."""
    return [m for m in METHODS if any((task, shift, m, head) in TABLE_1 for shift in SHIFTS)]


def shift_name(task: str, shift: str) -> str:
    """What the paper calls a column of a task: "Fixed-Color", "Dyn-Cam"; "Fixed" and "Rand" for other tasks.

    Raises:
        ConfigError: an unknown shift.
    """
    if shift not in SHIFTS:
        raise UnknownNameError(choose("shift", shift, SHIFTS))
    if task == "pusht":
        return {"fixed": "Fixed-Color", "rand": "Rand-Color"}[shift]
    return {"fixed": "Fixed-Cam", "rand": "Dyn-Cam"}[shift] if task in TASKS else shift.capitalize()
