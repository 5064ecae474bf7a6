"""What LeRobot's data sets say beside the demonstrations themselves: times of steps, counts, recorded statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.readers.lerobot import (
    INFO,
    Feature,
    Info,
    Recorded,
    is_proprioception,
    read_info,
    read_rows_of,
    recorded_episodes,
)
from classact.data.readers.lerobot_images import TOLERANCE
from classact.data.readers.parquet import read_texts
from classact.data.readers.selection import chosen_episodes
from classact.data.validate import Finding, some
from classact.utils.storage import read_json, read_jsonl

Row = Mapping[str, NDArray[Any]]
STATISTICS = {"min": 1e-3, "max": 1e-3, "mean": 1e-2, "std": 1e-2}
"""Statistic -> by how much of a dimension's range it may differ from what is computed."""

GAP = 0.5
"""Of a step: times that are further from one step after the last one are a gap."""


def check(path: Path, episodes: int | str | None = None) -> Iterator[Finding]:
    """A finding for each kind of oddity; the data set can be read (:func:`classact.data.readers.lerobot.read`)."""
    info = read_info(path)
    every = recorded_episodes(path, info)
    places = [every[e] for e in chosen_episodes(episodes, len(every), path)]
    low = {name: f for name, f in info.features.items() if name == "action" or is_proprioception(f)}
    shapes: dict[str, tuple[int, ...]] = {name: f.shape for name, f in low.items()}
    rows = read_rows_of(info, places, shapes | {"timestamp": (), "frame_index": ()})
    yield from _times(info, places, rows)
    yield from _lengths(path, info, every)
    yield from _statistics(path, low, places, rows, whole=len(places) == len(every))


def _times(info: Info, places: Sequence[Recorded], rows: Sequence[Row]) -> Iterator[Finding]:
    """Times that go back, gaps, another rate than is declared, and small differences from it."""
    step = 1 / info.fps
    times = [own["timestamp"].astype(np.float64) for own in rows]
    moves = [np.diff(own) for own in times]
    usual = float(np.median(np.concatenate([*moves, np.zeros(0)]))) if any(map(len, moves)) else step

    def finding(which: Sequence[bool], kind: Any, what: str) -> Iterator[Finding]:
        if any(which):
            numbers = np.array([place.index for place, chosen in zip(places, which, strict=True) if chosen])
            yield Finding(kind, "timestamps", f"episodes {some(numbers)}", what)

    back = [bool((own <= 0).any()) for own in moves]
    yield from finding(back, "problem", "timestamps do not increase.")
    if usual > 0 and abs(usual - step) > 0.01 * step:
        what = f"steps are {1000 * usual:.4g} ms apart, {1 / usual:.4g} per second, but {INFO} says fps {info.fps:g}."
        yield Finding(
            "problem", "timestamps", "all episodes", f"{what} One of both is wrong: windows are counted by fps."
        )
        step = usual
    far = [(own > 0) & (np.abs(own - step) > GAP * step) for own in moves]
    if any(own.any() for own in far):
        at = next(e for e, own in enumerate(far) if own.any())
        t = int(np.argmax(far[at]))
        what = (
            f"{sum(int(own.sum()) for own in far)} gaps; the first, {times[at][t]:.4f} to {times[at][t + 1]:.4f} s, at "
            f"step {t} of episode {places[at].index}, expected {step:.4g} s: frames were dropped or recorded twice."
        )
        yield from finding([bool(own.any()) for own in far], "problem", what)
    grid = [own["frame_index"] * step for own in rows]
    late = [bool(len(own) and abs(own[0]) > TOLERANCE) for own in times]
    yield from finding(late, "note", "the first step is not at 0 s.")
    off = [float(np.abs(own - own[0] - on).max(initial=0.0)) for own, on in zip(times, grid, strict=True)]
    # Times are float32; of long episodes they are that much coarser.
    near = [TOLERANCE + 2 * float(np.spacing(np.float32(own.max(initial=0.0)))) for own in times]
    odd = [o > n and not f.any() and not b for o, n, f, b in zip(off, near, far, back, strict=True)]
    what = f"times differ by up to {1000 * max(off, default=0):.3g} ms from multiples of {1000 * step:.4g} ms."
    yield from finding(odd, "note", what)


def _lengths(path: Path, info: Info, places: Sequence[Recorded]) -> Iterator[Finding]:
    """Counts of steps in info.json, and how much of a video is an episode's."""
    steps, declared = sum(place.length for place in places), read_json(path / INFO).get("total_frames")
    if declared is not None and declared != steps:
        yield Finding("problem", "lengths", INFO, f"total_frames is {declared!r}, the episodes have {steps:,} steps.")
    cameras = [name for name, feature in info.features.items() if feature.dtype == "video" and feature.is_camera]
    if not info.version.startswith("v3"):
        return
    fields = {name: (f"videos/{name}/from_timestamp", f"videos/{name}/to_timestamp") for name in cameras}
    rows = _episodes_table(path, [field for pair in fields.values() for field in pair])
    for name, (begin, end) in fields.items():
        odd = []
        for place in places:
            first, last = (rows.get(place.index, {}).get(field) for field in (begin, end))
            if first is not None and last is not None and abs(last - first - place.length / info.fps) > 0.5 / info.fps:
                odd.append((place, last - first))
        if odd:
            place, seconds = odd[0]
            what = (
                f"of the video {seconds:.4g} s are declared, {place.length} steps at {info.fps:g} per second are "
                f"{place.length / info.fps:.4g} s (episode {place.index})."
            )
            numbers = np.array([one.index for one, _ in odd])
            yield Finding("problem", "timestamps", f"{info.features[name].short}, episodes {some(numbers)}", what)


def _episodes_table(path: Path, columns: Sequence[str]) -> dict[int, dict[str, Any]]:
    """Number of an episode -> columns of meta/episodes."""
    files = sorted((path / "meta/episodes").glob("*/*.parquet"))
    rows = [row for file in files for row in read_texts(file, ("episode_index", *columns))]
    return {int(row["episode_index"]): row for row in rows}


def _statistics(
    path: Path, low: Mapping[str, Feature], places: Sequence[Recorded], rows: Sequence[Row], *, whole: bool
) -> Iterator[Finding]:
    """Recorded statistics of actions and states against what is computed, of all and of each episode."""
    values = {name: [own[name].reshape(len(own[name]), -1).astype(np.float64) for own in rows] for name in low}
    spans = {name: np.ptp(np.concatenate(own), axis=0) for name, own in values.items()}
    file = path / "meta/stats.json"
    recorded = read_json(file) if whole and file.is_file() else None
    if isinstance(recorded, dict):
        for name in low:
            if not isinstance(recorded.get(name), dict):
                yield Finding(
                    "note", "statistics", name, "meta/stats.json has none of it: LeRobot cannot normalise it."
                )
            elif differs := _differs(recorded[name], np.concatenate(values[name]), spans[name]):
                what = f"meta/stats.json: {differs} Policies that LeRobot trains normalise by it: compute it anew."
                yield Finding("problem", "statistics", name, what)
    each = _of_episodes(path, low)
    for name in low:
        odd = []
        for place, own in zip(places, values[name], strict=True):
            known = each.get(place.index, {}).get(name)
            if known and (differs := _differs(known, own, spans[name])):
                odd.append((place.index, differs))
        if odd:
            where = f"{name}, episodes {some(np.array([index for index, _ in odd]))}"
            yield Finding("problem", "statistics", where, f"{len(odd)} differ; of episode {odd[0][0]}, {odd[0][1]}")


def _of_episodes(path: Path, low: Mapping[str, Feature]) -> dict[int, dict[str, dict[str, Any]]]:
    """Number of an episode -> feature -> its statistics, where they are recorded."""
    file = path / "meta/episodes_stats.jsonl"
    if file.is_file():
        lines = [row for row in read_jsonl(file) if isinstance(row.get("episode_index"), int)]
        return {row["episode_index"]: row["stats"] for row in lines if isinstance(row.get("stats"), dict)}
    if not (path / "meta/episodes").is_dir():
        return {}
    table = _episodes_table(path, [f"stats/{name}/{key}" for name in low for key in STATISTICS])
    out: dict[int, dict[str, dict[str, Any]]] = {}
    for index, row in table.items():
        found = {name: {key: row.get(f"stats/{name}/{key}") for key in STATISTICS} for name in low}
        out[index] = {name: own for name, own in found.items() if any(one is not None for one in own.values())}
    return out


def _differs(recorded: Any, values: NDArray[np.float64], span: NDArray[np.float64]) -> str:
    """The first statistic that is not that of (N, D) values, with both numbers; empty where all are."""
    if not isinstance(recorded, dict):
        return f"expected statistics, got {type(recorded).__name__}."
    for key, share in STATISTICS.items():
        try:
            known = np.asarray(recorded.get(key), np.float64).reshape(-1)
        except (TypeError, ValueError):
            return f"{key} holds no numbers."
        if recorded.get(key) is None:
            continue
        computed = getattr(values, key)(axis=0)
        if known.shape != computed.shape:
            return f"{key} has {len(known)} numbers, the data have {len(computed)} dimensions."
        allowed = share * span + 1e-5 * np.maximum(np.abs(computed), 1e-3)
        wrong = ~(np.abs(known - computed) <= allowed)  # NaN is wrong
        if wrong.any():
            d = int(np.argmax(wrong))
            return f"{key} of dimension {d} is recorded as {known[d]:.5g}, computed is {computed[d]:.5g}."
    return ""
