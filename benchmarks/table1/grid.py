"""Which cells a table has, and the protocol that they share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from classact.errors import ConfigError, UnknownNameError, choose
from classact.run.config import RunConfig
from classact.run.presets import HEAD_PRESETS, PRESETS, default_head_preset, from_preset
from classact.sims import SIMULATORS
from classact.train.config import AugmentConfig, FinetuneConfig
from classact.utils.storage import slug
from table1.methods import Method, parse_method

HEADS = ("rep", "mlp", "mlp-rep", "dp", "dp-rep")
"""Retrieval without a head; the heads by the names of table 1; and retrieval with the encoder that was trained beneath
one, table 1's "non-parametric"."""

HEAD_NAMES = {"mlp": "mlp", "dp": "diffusion"}
"""Of heads: table 1's name -> the one in :mod:`classact.models.heads`, which is that of its folder."""

SHIFTS = ("fixed", "rand")
"""The two columns of a task."""

SEVERAL = 16
"""Neighbours where the preset has one alone."""

_SHIFTED = {"pusht": "rand-color", "aloha-transfer": "rotation"}
_BUDGET = re.compile(r"(?P<number>\d+(\.\d+)?)\s*(?P<unit>k|m|min|h|)", re.IGNORECASE)


def shift_of(task: str, column: str) -> str:
    """The visual shift that a column of the table is for a task (5.3): ``fixed`` none, ``rand`` the task's own."""
    if column not in SHIFTS:
        raise UnknownNameError(choose("column", column, SHIFTS))
    return SIMULATORS[task].plain if column == "fixed" else _SHIFTED.get(task, "dynamic")


def parse_budget(text: str) -> tuple[int | None, float | None]:
    """A budget as (images, None) or (None, seconds): ``500k``, ``2M``, ``10min``, ``1h``.

    Raises:
        ConfigError: neither, or nothing at all.
    """
    found = _BUDGET.fullmatch(text.strip())
    number = 0.0 if found is None else float(found["number"])
    if found is None or not number > 0:
        raise ConfigError(f"expected a budget in images or in time, such as 500k, 2M, 10min or 1h, got {text!r}.")
    unit = found["unit"].lower()
    if unit in ("min", "h"):
        return None, number * (60 if unit == "min" else 3600)
    return round(number * {"": 1, "k": 1000, "m": 1_000_000}[unit]), None


@dataclass(frozen=True)
class Protocol:
    """What all cells of a table share.

    Attributes:
        task: simulator.
        data: demonstrations.
        preset: of encoder, optimiser, retrieval.
        images: N of a training: views that the encoder sees in pre-training; None: ``seconds``.
        seconds: of pre-training, on this machine.
        head_images: views that the encoder sees when a head is trained after pre-training. What was not pre-trained
            gets ``images`` on top.
        heldout: last demonstrations that nobody learns from, for probes.
        starts: unseen initial states of each cell, from seed ``first_seed`` on.
        first_seed: of these. Presets were explored on starts from 100,000 on, so they are others.
        rates: learning rates tried for each baseline.
        tuning_images: of each try.
        taus: temperatures of retrieval that each cell chooses among; 0: the nearest one alone.
        k: neighbours at temperatures above 0, unless a method sets its own; None: the preset's where it has several,
            else 16.
        tuning_starts: held-out starts that learning rates and temperatures are chosen on.
        tuning_seed: of the first of these: no cell is evaluated on them.
        evaluations: rollouts during each training, evenly over all of it (fig. 10); 0: none. Representations act by
            the nearest neighbour alone then, for temperatures are chosen at the end.
        evaluation_starts: of each of these.
        probe: measure representations without rollouts, too.
        layout: of the data, see :class:`classact.run.config.RunConfig`.
    """

    task: str
    data: str
    preset: str
    images: int | None = 500_000
    seconds: float | None = None
    head_images: int = 100_000
    heldout: int = 20
    starts: int = 100
    first_seed: int = 300_000
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3)
    tuning_images: int = 60_000
    taus: tuple[float, ...] = (0.0, 0.004, 0.04)
    k: int | None = None
    tuning_starts: int = 20
    tuning_seed: int = 200_000
    evaluations: int = 0
    evaluation_starts: int = 25
    probe: bool = True
    layout: str | None = None

    def __post_init__(self) -> None:
        if (self.images is None) == (self.seconds is None):
            raise ConfigError(
                f"expected a budget in images or in seconds, one of the two, got images {self.images} and seconds "
                f"{self.seconds}."
            )
        counts = (self.head_images, self.starts, self.tuning_images, self.tuning_starts, self.evaluation_starts)
        if min(counts) < 1 or min(self.heldout, self.evaluations) < 0 or not self.rates or not self.taus:
            raise ConfigError(
                f"expected head_images, starts, tuning_images, tuning_starts and evaluation_starts >= 1, heldout and "
                f"evaluations >= 0, and at least one rate and tau, got {self}."
            )
        if min(self.rates) <= 0 or min(self.taus) < 0 or (self.k is not None and self.k < 1):
            raise ConfigError(f"expected rates > 0, taus >= 0 and k >= 1, got {self.rates}, {self.taus} and {self.k}.")
        first, last = self.tuning_seed, self.tuning_seed + self.tuning_starts
        if first < self.first_seed + self.starts and self.first_seed < last:
            raise ConfigError(
                f"starts {first}..{last - 1} are to choose settings with, and {self.first_seed}.."
                f"{self.first_seed + self.starts - 1} to evaluate: they overlap."
            )
        _ = PRESETS[self.preset]

    def to_json(self) -> dict[str, Any]:
        """As the results file keeps it."""
        return asdict(self)

    def retrievals(self, method: Method) -> list[dict[str, Any]]:
        """What a method's retrieval is chosen among: different settings of k and temperature."""
        preset = PRESETS[self.preset].retrieval.k
        k = dict(method.retrieval).get("k") or self.k or (preset if preset > 1 else SEVERAL)
        found = [{"k": 1} if tau == 0 or k == 1 else {"k": k, "temperature": tau} for tau in self.taus]
        return [settings for i, settings in enumerate(found) if settings not in found[:i]]


@dataclass(frozen=True)
class Cell:
    """One cell of the table, for one seed.

    Attributes:
        method: row.
        head: of :data:`HEADS`.
        column: "fixed" or "rand".
        augmentation: of colours, in pre-training and of heads: "none" (the paper's table), "hsv" (F.2), ...
        seed: of training.
        factor: of the budget.
        demonstrations: only the first so many; None: all but the held-out ones.
    """

    method: Method
    head: str = "rep"
    column: str = "fixed"
    augmentation: str = "none"
    seed: int = 0
    factor: float = 1.0
    demonstrations: int | None = None

    def __post_init__(self) -> None:
        if self.head not in HEADS:
            raise UnknownNameError(choose("head", self.head, HEADS))
        if self.column not in SHIFTS:
            raise UnknownNameError(choose("column", self.column, SHIFTS))
        if not self.factor > 0 or self.seed < 0:
            raise ConfigError(f"expected a budget factor > 0 and a seed >= 0, got {self.factor} and {self.seed}.")
        if self.demonstrations is not None and self.demonstrations < 1:
            raise ConfigError(f"expected at least 1 demonstration, got {self.demonstrations}.")

    @property
    def run_name(self) -> str:
        """Of the folder of the representation: heads on it lie within."""
        parts = [self.method.written, self.column, self.augmentation, f"seed{self.seed}"]
        if self.factor != 1:
            parts.append(f"{self.factor:g}x")
        if self.demonstrations is not None:
            parts.append(f"{self.demonstrations}demos")
        return slug("-".join(parts))

    @property
    def name(self) -> str:
        """Unique in a table."""
        return self.run_name if self.head == "rep" else f"{self.run_name}-{self.head}"

    @property
    def trained_head(self) -> str:
        """The head that is trained: its own, or that whose encoder it retrieves with; "rep" where there is none."""
        return self.head.removesuffix("-rep")

    @property
    def variant(self) -> str:
        """What sets it apart from the method's plain cell, for tables."""
        parts = [self.method.variant]
        parts += [f"{self.factor:g}x budget"] if self.factor != 1 else []
        return ", ".join(filter(None, parts))

    @property
    def sensible(self) -> bool:
        """Whether the paper's table could have it: the equivariant encoder learns with Diffusion Policy alone, and one
        of random weights says nothing by itself, but shows what retrieval gives for free."""
        return self.method.name != "equivar" or self.trained_head == "dp"


def plan(
    methods: Sequence[str],
    *,
    heads: Sequence[str] = ("rep",),
    columns: Sequence[str] = SHIFTS,
    augmentations: Sequence[str] = ("none",),
    seeds: int | Iterable[int] = 1,
    factor: float = 1.0,
    demonstrations: Sequence[int | None] = (None,),
) -> list[Cell]:
    """The cells of a grid: representations first, for heads are trained on them; seeds last."""
    numbers = range(seeds) if isinstance(seeds, int) else list(seeds)
    made = [parse_method(method) for method in methods]
    ordered = sorted(heads, key=lambda head: HEADS.index(head) if head in HEADS else 0)
    cells = [
        Cell(method, head, column, augmentation, seed, factor, count)
        for seed in numbers
        for head in ordered
        for count in demonstrations
        for augmentation in augmentations
        for column in columns
        for method in made
    ]
    return _named([cell for cell in cells if cell.sensible])


def with_random(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, and behind them those of random weights under the same heads, columns, augmentations and seeds."""
    random = parse_method("random")
    return _named([*cells, *(Cell(random, cell.head, cell.column, cell.augmentation, cell.seed) for cell in cells)])


def _named(cells: Sequence[Cell]) -> list[Cell]:
    """The cells, each once.

    Raises:
        ConfigError: two that are not the same would have one name.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        other = found.setdefault(cell.name, cell)
        if other != cell:
            raise ConfigError(
                f"methods {other.method.written!r} and {cell.method.written!r} would both lie in the folder "
                f"{cell.name!r}: give one of them another --out."
            )
    return list(found.values())


def run_config(cell: Cell, protocol: Protocol, steps: int, rate: float | None, images: int | None = None) -> RunConfig:
    """The run of a cell's representation.

    Args:
        cell: which.
        protocol: shared.
        steps: N of the demonstrations that are learned from.
        rate: learning rate; None: the preset's.
        images: views that the encoder sees; None: the protocol's, times the cell's factor.
    """
    made = from_preset(
        protocol.preset,
        shift=shift_of(protocol.task, cell.column),
        simulator=protocol.task,
        data=protocol.data,
        layout=protocol.layout,
        baselines=False,
        heldout=protocol.heldout,
        episodes=None if cell.demonstrations is None else cell.demonstrations + protocol.heldout,
    )
    pretrain = replace(made.pretrain, seed=cell.seed, augment=augmentation(cell, protocol))
    pretrain = cell.method.config(pretrain)
    if rate is not None:
        pretrain = replace(pretrain, optimizer=replace(pretrain.optimizer, learning_rate=rate))
    if cell.method.pretrained:
        if images is None:
            if protocol.images is None:
                raise ConfigError("a budget in time must be turned into images before a run is made of it.")
            images = round(protocol.images * cell.factor)
        pretrain = replace(pretrain, epochs=images / (steps * pretrain.objective.images_per_anchor))
    evaluation = replace(made.evaluation, episodes=protocol.starts, first_seed=protocol.first_seed)
    retrieval = cell.method.retrieval_config(made.retrieval)
    return replace(
        made,
        pretrain=replace(
            pretrain,
            evaluations=protocol.evaluations,
            evaluations_from=1 / max(1, protocol.evaluations),
            checkpoint_every=CHECKPOINT_EVERY,
        ),
        retrieval=retrieval,
        evaluation=evaluation,
        intermediate_episodes=protocol.evaluation_starts,
        # What suits a cell best is chosen when it is trained; until then this favours nobody.
        intermediate_retrieval=replace(retrieval, k=1),
    )


def augmentation(cell: Cell, protocol: Protocol) -> AugmentConfig:
    """Random views of a cell's images, in pre-training and of heads: the method's own colours, else the cell's."""
    pretrain = PRESETS[protocol.preset].pretrain
    pretrain = replace(pretrain, augment=replace(pretrain.augment, color=cast(Any, cell.augmentation)))
    return cell.method.config(pretrain).augment


def images_per_step(config: RunConfig, steps: int) -> int:
    """Views that the encoder sees in an update of pre-training on N ``steps``."""
    return config.pretrain.objective.images_per_anchor * min(config.pretrain.batch_size, steps)


def head_config(
    cell: Cell, protocol: Protocol, steps: int, rate: float | None = None, images: int | None = None
) -> tuple[FinetuneConfig, str]:
    """The training of a cell's head, and what it starts from: see :class:`classact.run.config.HeadRunConfig`.

    Args:
        cell: with a head.
        protocol: shared.
        steps: N of the demonstrations that are learned from.
        rate: of the encoder; None: the preset's.
        images: views that the encoder sees; None: as the protocol says.
    """
    if images is None:
        images = protocol.head_images
        if not cell.method.pretrained:
            if protocol.images is None:
                raise ConfigError("a budget in time must be turned into images before a head is made of it.")
            images += round(protocol.images * cell.factor)
    # By the preset's backbone, not the cell's: heads of one table are of one size.
    backbone = PRESETS[protocol.preset].pretrain.encoder.backbone
    name = "head-debug" if protocol.preset == "debug" else default_head_preset(backbone, protocol.task)
    made = HEAD_PRESETS[name].config(
        HEAD_NAMES[cell.trained_head],
        encoder="scratch" if cell.method.scratch else "class",
        frozen=False,
        augment=augmentation(cell, protocol),
    )
    made = replace(
        made,
        seed=cell.seed,
        epochs=images / steps,
        optimizer=made.optimizer if rate is None else replace(made.optimizer, encoder_lr=rate),
        evaluations=protocol.evaluations,
        checkpoint_every=HEAD_CHECKPOINT_EVERY,
    )
    return made, "scratch" if cell.method.scratch else "run"


def searched(cell: Cell) -> Cell | None:
    """The cell that a cell's learning rate is tried with; None: it has the preset's.

    Rates of baselines are those of their representations. Heads on random weights have their encoder's rate tried: the
    preset's low one is to preserve what was pre-trained, and would starve an encoder that has nothing to preserve.
    """
    if cell.method.tuned:
        return Cell(cell.method)
    if cell.head != "rep" and cell.method.scratch:
        return Cell(cell.method, cell.trained_head)
    return None


def rates_of(cell: Cell, protocol: Protocol) -> list[float]:
    """Learning rates that are tried for a cell of :func:`searched`."""
    if cell.head == "rep":
        return list(dict.fromkeys(protocol.rates))
    preset = head_config(cell, protocol, 1, images=1)[0].optimizer
    return sorted({preset.encoder_lr, preset.head_lr})


CHECKPOINT_EVERY = 500
"""Steps: some two minutes on two cores, the most that a kill costs."""

HEAD_CHECKPOINT_EVERY = 1000
"""Steps of a head's training."""
