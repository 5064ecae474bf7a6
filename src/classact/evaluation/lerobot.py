"""LeRobot's own evaluations with intervals: the ``eval_info.json`` that ``lerobot-eval`` writes, without LeRobot.

Since LeRobot 0.4 it holds ``per_task`` (group, number, rewards and success of each episode), ``per_group`` and
``overall``, and no seeds; before, ``per_episode``, with seeds, and ``aggregated``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classact.errors import ConfigError, DataError
from classact.utils.statistics import (
    Estimate,
    difference_over_seeds,
    holm,
    independent_difference,
    mean_interval,
    permutation_p,
    wilson_interval,
)
from classact.utils.storage import read_json

INFO = "eval_info.json"
ALL = "all tasks"


@dataclass(frozen=True)
class Episodes:
    """Of one task of an evaluation; each tuple has one value per episode, in the file's order.

    Attributes:
        task: group and number, as in ``libero_object 3``; empty in files of before LeRobot 0.4.
        successes, sum_rewards, max_rewards: as LeRobot measured them.
        seeds: of the initial states; None where the file does not say.
    """

    task: str
    successes: tuple[bool, ...]
    sum_rewards: tuple[float, ...]
    max_rewards: tuple[float, ...]
    seeds: tuple[int, ...] | None = None


@dataclass(frozen=True)
class LerobotRow:
    """A line of the table: a task of a file, or all of them.

    Attributes:
        name: of the file's folder.
        task: see :class:`Episodes`; :data:`ALL`.
        episodes, successes: how many.
        success: with its 95 % Wilson interval.
        max_reward, sum_reward: means over episodes with their 95 % bootstrap intervals.
    """

    name: str
    task: str
    episodes: int
    successes: int
    success: Estimate
    max_reward: Estimate
    sum_reward: Estimate


@dataclass(frozen=True)
class LerobotDifference:
    """A file beside the first one.

    Attributes:
        name: its.
        states: initial states that both start from; 0: none is known to be shared.
        won, lost: of these, those from which only this one succeeds, or only the first.
        difference: of success, this one's less the first's, with its 95 % interval: Tango's where states are shared,
            else Newcombe's.
        p: McNemar's exact test, or Fisher's.
        adjusted: p, by Holm, for as many comparisons as there are.
    """

    name: str
    states: int
    won: int
    lost: int
    difference: Estimate
    p: float
    adjusted: float


def read_eval_info(path: Path) -> tuple[Episodes, ...]:
    """The episodes of each task.

    Args:
        path: ``eval_info.json``, or the folder it is in.

    Raises:
        DataError: missing, damaged, something else, or numbers that contradict each other.
    """
    file = path / INFO if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"{file} does not exist. Expected the {INFO} of lerobot-eval (in its --output_dir).")
    value = read_json(file)
    if isinstance(value, dict) and isinstance(value.get("per_task"), list):
        found, stated = _by_task(file, value["per_task"]), value.get("overall")
    elif isinstance(value, dict) and isinstance(value.get("per_episode"), list):
        found, stated = _by_episode(file, value["per_episode"]), value.get("aggregated")
    else:
        keys = ", ".join(sorted(map(str, value))[:6]) if isinstance(value, dict) else type(value).__name__
        raise DataError(
            f"{file} is no {INFO} of lerobot-eval: expected per_task and overall, or per_episode and aggregated, found "
            f"{keys or 'nothing'}."
        )
    _check_stated(file, found, stated)
    return found


def lerobot_rows(name: str, tasks: Sequence[Episodes]) -> list[LerobotRow]:
    """A row for each task, and for all of them where there are several."""
    every = [_row(name, task) for task in tasks]
    return every if len(tasks) == 1 else [*every, _row(name, _together(tasks))]


def lerobot_differences(
    evaluations: Mapping[str, Sequence[Episodes]], *, paired: bool = False
) -> list[LerobotDifference]:
    """Each evaluation beside the first: state by state where their seeds agree, else as independent episodes.

    Args:
        evaluations: name -> tasks.
        paired: files without seeds are of the same ones, in the same order.

    Raises:
        ConfigError: evaluations of other tasks, or that are said to be paired and cannot be.
    """
    (first, before), *others = evaluations.items()
    found = [_difference(name, tasks, first, before, paired=paired) for name, tasks in others]
    adjusted = holm([one[-1] for one in found])
    return [LerobotDifference(*one, adjusted=p) for one, p in zip(found, adjusted, strict=True)]


def _difference(
    name: str, tasks: Sequence[Episodes], first: str, before: Sequence[Episodes], *, paired: bool
) -> tuple[str, int, int, int, Estimate, float]:
    if [task.task for task in tasks] != [task.task for task in before]:
        raise ConfigError(
            f"{name} is of other tasks than {first}: {', '.join(task.task for task in tasks)} beside "
            f"{', '.join(task.task for task in before)}."
        )
    own, theirs = [], []
    for a, b in zip(tasks, before, strict=True):
        outcomes_a, outcomes_b = _by_state(a, paired=paired), _by_state(b, paired=paired)
        if paired and outcomes_a.keys() != outcomes_b.keys():
            raise ConfigError(
                f"{name} and {first} are not of the same episodes: {len(a.successes)} and {len(b.successes)}"
                f"{f' of {a.task}' * bool(a.task)}, or of other seeds. Leave --paired out."
            )
        shared = [state for state in outcomes_a if state in outcomes_b]
        own += [outcomes_a[state] for state in shared]
        theirs += [outcomes_b[state] for state in shared]
    if own:
        x, y = np.array([own], np.int64), np.array([theirs], np.int64)
        difference = difference_over_seeds(x, y, np.random.default_rng(0))
        return name, x.shape[1], int((x > y).sum()), int((x < y).sum()), difference, permutation_p(x, y)
    from scipy.stats import fisher_exact

    a_all, b_all = _together(tasks).successes, _together(before).successes
    (k, n), (j, m) = counts = [(sum(every), len(every)) for every in (a_all, b_all)]
    p = float(fisher_exact([[k, n - k], [j, m - j]]).pvalue)
    return name, 0, 0, 0, independent_difference(*counts), p


def _by_state(task: Episodes, *, paired: bool) -> dict[int, bool]:
    """Initial state -> success; nothing where it is not known which state was which."""
    seeds = task.seeds if task.seeds is not None else tuple(range(len(task.successes))) if paired else ()
    return dict(zip(seeds, task.successes, strict=True)) if seeds else {}


def _row(name: str, task: Episodes) -> LerobotRow:
    n, k = len(task.successes), sum(task.successes)
    success = Estimate(k / n, *wilson_interval(k, n))
    rewards = (mean_interval(np.array(values)) for values in (task.max_rewards, task.sum_rewards))
    return LerobotRow(name, task.task, n, k, success, *rewards)


def _together(tasks: Sequence[Episodes]) -> Episodes:
    return Episodes(
        ALL,
        *(
            tuple(value for task in tasks for value in getattr(task, kind))
            for kind in ("successes", "sum_rewards", "max_rewards")
        ),
    )


# What a file holds


def _by_task(file: Path, tasks: list[Any]) -> tuple[Episodes, ...]:
    found = []
    for number, task in enumerate(tasks):
        where = f"{file}: per_task[{number}]"
        metrics = task.get("metrics") if isinstance(task, dict) else None
        if not isinstance(metrics, dict):
            raise DataError(f"{where}: expected a task with its metrics, got {task!r:.80}.")
        kinds = ("successes", "sum_rewards", "max_rewards")
        columns = {kind: metrics.get(kind) for kind in kinds}
        lengths = {kind: len(values) if isinstance(values, list) else None for kind, values in columns.items()}
        if None in lengths.values() or len(set(lengths.values())) > 1:
            said = ", ".join(f"{kind} {'missing' if n is None else n}" for kind, n in lengths.items())
            raise DataError(f"{where}: expected lists with one value per episode, got {said}.")
        rows = zip(*(columns[kind] for kind in kinds), strict=True)
        found.append(_episodes(where, f"{task.get('task_group')} {task.get('task_id')}", list(rows), None))
    return _not_empty(file, found)


def _by_episode(file: Path, episodes: list[Any]) -> tuple[Episodes, ...]:
    where = f"{file}: per_episode"
    fields = ("success", "sum_reward", "max_reward")
    for number, one in enumerate(episodes):
        if not isinstance(one, dict) or any(field not in one for field in fields):
            raise DataError(f"{where}[{number}]: expected {', '.join(fields)}, got {one!r:.80}.")
    rows = [tuple(one[field] for field in fields) for one in episodes]
    seeds = [one.get("seed") for one in episodes]
    known = all(isinstance(seed, int) for seed in seeds) and len(set(seeds)) == len(seeds)
    return _not_empty(file, [_episodes(where, "", rows, tuple(seeds) if known else None)])


def _episodes(where: str, task: str, rows: list[tuple[Any, ...]], seeds: tuple[int, ...] | None) -> Episodes:
    for number, (success, *rewards) in enumerate(rows):
        if not isinstance(success, bool):
            raise DataError(f"{where}: success of episode {number} is {success!r}, expected true or false.")
        for reward in rewards:
            if not math.isfinite(_number(reward)):
                raise DataError(f"{where}: a reward of episode {number} is {reward!r}, expected a finite number.")
    successes, sums, maxima = zip(*rows, strict=True) if rows else ((), (), ())
    return Episodes(task, successes, tuple(map(float, sums)), tuple(map(float, maxima)), seeds)


def _not_empty(file: Path, found: list[Episodes]) -> tuple[Episodes, ...]:
    kept = tuple(task for task in found if task.successes)
    if not kept:
        raise DataError(f"{file} holds no episodes. Was the evaluation stopped? Run it again.")
    return kept


def _check_stated(file: Path, tasks: Sequence[Episodes], stated: Any) -> None:
    """What the file says of all episodes is what its episodes give."""
    if not isinstance(stated, dict):
        raise DataError(f"{file}: overall, or aggregated, is missing: the file is damaged. Evaluate again.")
    every = _together(tasks).successes
    count, share = stated.get("n_episodes", len(every)), stated.get("pc_success")
    found = 100 * sum(every) / len(every)
    if count != len(every) or not math.isclose(_number(share), found, abs_tol=1e-3):
        raise DataError(
            f"{file}: it says {share} % of {count} episodes, but its episodes give {found:.4g} % of {len(every)}: the "
            f"file is damaged. Evaluate again."
        )


def _number(value: Any) -> float:
    """NaN for what is none, or beyond all measure."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return math.nan
    return float(value)
