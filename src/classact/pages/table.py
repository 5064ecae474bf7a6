"""Rows of the success table: what tells them apart, and the maximum over training beside the last checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]

ENCODER_NAMES = {
    "class": "CLASS (learned)",
    "untrained": "untrained encoder",
    "state": "true state as latent",
    "scratch": "encoder from scratch",
}
POLICY_NAMES = {"retrieval": "Retrieval", "mlp": "MLP", "diffusion": "Diffusion Policy"}
LABELS = ("policy", "encoder", "training", "augmentation", "simulator", "shift")
"""What a result was obtained with; with the criterion it tells results apart."""


BASELINES = ("untrained", "state")
"""Encoders that no training led to: their rows have neither training nor augmentation, whatever they say."""


def plain(value: object) -> str:
    """A name as text; ``None`` and ``"none"`` are empty."""
    return "" if value is None or str(value).lower() == "none" else str(value)


def encoder_name(name: str) -> str:
    """How the report writes an encoder's name."""
    return ENCODER_NAMES.get(name, name)


def policy_name(name: str) -> str:
    """How the report writes a policy's name."""
    return POLICY_NAMES.get(name, name)


def augmentation_name(value: object) -> str:
    """``"crop, noise"`` as ``"crop + noise"``; "none" is said, an absent value is empty."""
    if value is None or str(value) == "":
        return ""
    return "no augmentation" if str(value).lower() == "none" else " + ".join(re.split(r"\s*,\s*", str(value)))


def training_name(row: Mapping[str, Any]) -> str:
    """How the policy was trained; empty where that is not known, or nothing was, or the encoder's name says it."""
    training = "" if row.get("encoder") in BASELINES else plain(row.get("training"))
    return "" if row.get("encoder") == "scratch" and training == "from scratch" else training


def row_augmentation(row: Mapping[str, Any]) -> str:
    """:func:`augmentation_name` of what was trained with; empty where nothing was."""
    return "" if row.get("encoder") in BASELINES else augmentation_name(row.get("augmentation"))


def varies(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    """Whether rows differ by a label. Training and augmentation count only where rows have them."""
    if key in ("training", "augmentation"):
        trained = [row for row in rows if row.get("encoder") not in BASELINES]
        name = plain if key == "training" else augmentation_name
        return len({text for row in trained if (text := name(row.get(key)))}) > 1
    return len({plain(row.get(key)) for row in rows}) > 1


def told_apart(row: Row, rows: Sequence[Row], name: Callable[[Row], str]) -> str:
    """The evaluation's name where ``name(row)`` is also that of another evaluation in ``rows``; else empty."""
    own, evaluation = name(row), _evaluation(row)
    same = (o for o in rows if _evaluation(o) != evaluation and (maximum_of(o) is None) == (maximum_of(row) is None))
    return evaluation if any(name(other) == own for other in same) else ""


def _evaluation(row: Mapping[str, Any]) -> str:
    """Whose last weights the row is about: a maximum has the name of its last row, and an ending."""
    name = plain(row.get("evaluation"))
    return name if maximum_of(row) is None else name.removesuffix("-maximum")


def row_parts(row: Row, rows: Sequence[Row]) -> tuple[str, str]:
    """What acted (policy and encoder), and whatever else tells this row apart, each only where rows differ.

    The second part is empty where rows do not differ by policy, training or augmentation: a short name needs none.
    Where two evaluations have the same labels, their names tell them apart.
    """
    shown = {key for key in LABELS if varies(rows, key)}

    def parts(row: Row) -> tuple[str, str]:
        first, second = [encoder_name(str(row.get("encoder", "?")))], []
        if "policy" in shown:
            first.insert(0, policy_name(plain(row.get("policy"))))
        if "training" in shown:
            second.append(training_name(row))
        if "augmentation" in shown:
            second.append(row_augmentation(row))
        if "simulator" in shown:
            second.append(plain(row.get("simulator")))
        if "shift" in shown:
            second.append(f"{plain(row.get('shift')) or 'no'} shift")
        if is_other(row):
            second.append(str(row["checkpoint"]))
        return ", ".join(filter(None, first)), ", ".join(filter(None, second))

    what, how = parts(row)
    how = ", ".join(filter(None, (how, told_apart(row, rows, lambda row: ", ".join(parts(row))))))
    if shown & {"policy", "training", "augmentation"}:
        return what, how
    return ", ".join(filter(None, (what, how))), ""


def series(row: Mapping[str, Any]) -> str:
    """What has one colour in all figures: an encoder under retrieval, or a head with its training."""
    if plain(row.get("policy")) in ("", "retrieval"):
        return str(row.get("encoder", "?"))
    return "-".join(str(row.get(key) or "") for key in ("policy", "encoder", "training", "augmentation"))


def row_label(row: Row, rows: Sequence[Row]) -> str:
    """Encoder, and whatever else tells this row apart, each only where rows differ."""
    return ", ".join(filter(None, row_parts(row, rows)))


def maximum_of(row: Mapping[str, Any]) -> int | None:
    """Over how many evaluations of a training the row is the maximum; 0 where it does not say, None for other rows."""
    found = re.match(r"maximum\b\D*(\d*)", str(row.get("checkpoint") or ""))
    return None if found is None else int(found[1] or 0)


def is_other(row: Mapping[str, Any]) -> bool:
    """Whether the row is of a checkpoint that is neither the last one nor a maximum."""
    return plain(row.get("checkpoint")) not in ("", "last") and maximum_of(row) is None


@dataclass(frozen=True)
class Result:
    """One line of the success table.

    Attributes:
        last: the row of the last checkpoint, None where only the maximum is known.
        maximum: the row of the largest success over the evaluations during training.
    """

    last: Row | None
    maximum: Row | None = None

    @property
    def row(self) -> Row:
        """The row that says what this result is of."""
        row = self.last or self.maximum
        assert row is not None
        return row

    @property
    def of(self) -> int | None:
        """Over how many evaluations the maximum is."""
        return None if self.maximum is None else maximum_of(self.maximum)


def results(rows: Sequence[Row]) -> list[Result]:
    """Rows in their order, each maximum beside the last checkpoint of the same training, setting and criterion.

    Which that is, the evaluation's name says, of which the maximum has that with "-maximum" behind; labels say it where
    one of both has no such name.
    """

    def named(row: Row, other: Row) -> bool:
        return _evaluation(row) == _evaluation(other) != "" and row.get("criterion") == other.get("criterion")

    def labelled(row: Row, other: Row) -> bool:
        unnamed = not (_evaluation(row) and _evaluation(other))
        return unnamed and all(plain(row.get(k)) == plain(other.get(k)) for k in (*LABELS, "criterion"))

    last = [i for i, row in enumerate(rows) if maximum_of(row) is None]
    alone = [i for i, row in enumerate(rows) if maximum_of(row) is not None]
    beside: dict[int, Row] = {}
    for fits in (named, labelled):
        for i in list(alone):
            same = (j for j in last if j not in beside and not is_other(rows[j]) and fits(rows[i], rows[j]))
            if (partner := next(same, None)) is not None:
                beside[partner] = rows[i]
                alone.remove(i)
    return [Result(rows[i], beside.get(i)) if i in last else Result(None, rows[i]) for i in sorted(last + alone)]


def evaluations_of_maxima(rows: Sequence[Row]) -> str:
    """Over how many evaluations the maxima are: "10", "8 or 10", "several" where rows do not say, "" without any."""
    counts = sorted({count for row in rows if (count := maximum_of(row)) is not None})
    if not counts:
        return ""
    return "several" if 0 in counts else " or ".join(map(str, counts))


def by_criterion(rows: Sequence[Row]) -> Iterator[tuple[str, list[Result]]]:
    """Results grouped by criterion, in the order of the rows."""
    for criterion in dict.fromkeys(str(row["criterion"]) for row in rows):
        yield criterion, results([row for row in rows if str(row["criterion"]) == criterion])
