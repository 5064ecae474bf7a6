"""Rows of the success table: what distinguishes them, and the maximum over training beside the last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from classact.evaluation.rows import EvaluationRow

Row = dict[str, Any]

ENCODER_NAMES = {
    "class": "CLASS (learned)",
    "untrained": "untrained encoder",
    "state": "true state as latent",
    "scratch": "encoder from scratch",
}
POLICY_NAMES = {"retrieval": "Retrieval", "mlp": "MLP", "diffusion": "Diffusion Policy"}
LABELS = ("policy", "encoder", "training", "augmentation", "simulator", "shift")
"""Labels of a result, which with the criterion identify it."""


BASELINES = ("untrained", "state")  # encoders that no training led to


def plain(value: object) -> str:
    """A name as text; ``None`` and ``"none"`` are empty."""
    return "" if value is None or str(value).lower() == "none" else str(value)


def encoder_name(name: str) -> str:
    """How the report writes an encoder's name."""
    return ENCODER_NAMES.get(name, name)


def policy_name(name: str) -> str:
    """How the report writes a policy's name."""
    return POLICY_NAMES.get(name, name)


def augmentation_name(name: str) -> str:
    """``"crop, noise"`` as ``"crop + noise"``; "none" is kept."""
    return "no augmentation" if name == "none" else name.replace(", ", " + ")


def training_name(row: EvaluationRow) -> str:
    """How the policy was trained; empty where nothing was, or the encoder's name says it."""
    training = plain(row.training)
    return "" if row.encoder == "scratch" and training == "from scratch" else training


def row_augmentation(row: EvaluationRow) -> str:
    """:func:`augmentation_name` of what was trained with; empty where nothing was."""
    return augmentation_name(row.augmentation) if plain(row.training) else ""


def varies(rows: Sequence[EvaluationRow], key: str) -> bool:
    """Whether rows differ by a label. Training and augmentation count only where something was trained."""
    if key in ("training", "augmentation"):
        return len({getattr(row, key) for row in rows if plain(row.training)}) > 1
    return len({plain(getattr(row, key)) for row in rows}) > 1


def told_apart(row: EvaluationRow, rows: Sequence[EvaluationRow], name: Callable[[EvaluationRow], str]) -> str:
    """The evaluation's name where ``name(row)`` is also that of another evaluation in ``rows``; else empty."""
    kind = row.maximum_of is None
    same = (o for o in rows if o.evaluation != row.evaluation and (o.maximum_of is None) == kind)
    return row.evaluation if any(name(other) == name(row) for other in same) else ""


def row_parts(row: EvaluationRow, rows: Sequence[EvaluationRow]) -> tuple[str, str]:
    """Policy and encoder, and whatever else distinguishes this row, each only where rows differ.

    The second part is empty where rows do not differ by policy, training or augmentation. Evaluations with equal labels
    are distinguished by their names.
    """
    shown = {key for key in LABELS if varies(rows, key)}

    def parts(row: EvaluationRow) -> tuple[str, str]:
        first, second = [encoder_name(row.encoder)], []
        if "policy" in shown:
            first.insert(0, policy_name(row.policy))
        if "training" in shown:
            second.append(training_name(row))
        if "augmentation" in shown:
            second.append(row_augmentation(row))
        if "simulator" in shown:
            second.append(row.simulator)
        if "shift" in shown:
            second.append(f"{plain(row.shift) or 'no'} shift")
        return ", ".join(filter(None, first)), ", ".join(filter(None, second))

    what, how = parts(row)
    how = ", ".join(filter(None, (how, told_apart(row, rows, lambda row: ", ".join(parts(row))))))
    if shown & {"policy", "training", "augmentation"}:
        return what, how
    return ", ".join(filter(None, (what, how))), ""


def series(row: EvaluationRow) -> str:
    """What has one colour in all figures: an encoder under retrieval, or a head with its training."""
    if row.policy == "retrieval":
        return row.encoder
    return "-".join((row.policy, row.encoder, row.training, row.augmentation))


def row_label(row: EvaluationRow, rows: Sequence[EvaluationRow]) -> str:
    """Encoder, and whatever else distinguishes this row, each only where rows differ."""
    return ", ".join(filter(None, row_parts(row, rows)))


@dataclass(frozen=True)
class Result:
    """One line of the success table: the last checkpoint's row, None if unknown, and the maximum over training."""

    last: EvaluationRow | None
    maximum: EvaluationRow | None = None

    @property
    def row(self) -> EvaluationRow:
        """The row with this result's labels."""
        row = self.last or self.maximum
        assert row is not None
        return row

    @property
    def of(self) -> int | None:
        """Number of evaluations behind the maximum."""
        return None if self.maximum is None else self.maximum.maximum_of


def results(rows: Sequence[EvaluationRow]) -> list[Result]:
    """Rows in their order, each maximum beside the last checkpoint of the same evaluation and criterion."""
    last: dict[tuple[str, str], EvaluationRow | None] = {}
    maxima: dict[tuple[str, str], EvaluationRow] = {}
    for row in rows:
        key = row.evaluation, row.criterion
        if row.maximum_of is None:
            last[key] = row
        else:
            maxima[key] = row
            last.setdefault(key, None)
    return [Result(row, maxima.get(key)) for key, row in last.items()]


def evaluations_of_maxima(rows: Sequence[EvaluationRow]) -> str:
    """Numbers of evaluations behind the maxima: "10", "8 or 10", "" without any."""
    return " or ".join(map(str, sorted({row.maximum_of for row in rows if row.maximum_of is not None})))


def by_criterion(rows: Sequence[EvaluationRow]) -> Iterator[tuple[str, list[Result]]]:
    """Results grouped by criterion, in the order of the rows."""
    for criterion in dict.fromkeys(row.criterion for row in rows):
        yield criterion, results([row for row in rows if row.criterion == criterion])
