"""The positives of every step as a compressed sparse row file: searched once, then read like an array.

Each rank writes the rows of one unit of anchors after the other, as shards; rank 0 puts them together. The bytes depend
on the data and the settings, not on how many ranks there were or how often they were stopped.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numba as nb
import numpy as np
from numpy.typing import NDArray

from classact.data.types import FloatArray, IntArray
from classact.errors import CheckpointError, ConfigError, StorageError, TrainingInterrupted
from classact.similarity.distribution import mark_duplicates
from classact.similarity.job import LEAST_UNITS, MOST_UNITS, Progress, check_ranks
from classact.similarity.sealed import DamagedFileError, check_same, drop, open_sealed, plain, write_sealed
from classact.similarity.stream import Sweep
from classact.similarity.threads import parallel
from classact.utils.interruptions import interruptible
from classact.utils.ranks import Ranks
from classact.utils.storage import CHECKSUMS, read_json, sha256_file, write_folder

FORMAT = 1
CARD = "graph.json"
ARRAYS: dict[str, Any] = {"indptr": np.int64, "indices": np.int32, "distances": np.float32}
"""Files NAME.npy of a graph and their types. ``indices`` is what scipy takes without a copy, and N < 2^31."""

UNIT_ENTRIES = 1 << 22
"""Edges that are held and sorted at once, and the size of a shard: 32 MiB."""
UNIT_PAIRS = 1 << 28
"""Pairs of a shard, where edges are few."""

logger = logging.getLogger(__name__)
_Keys = NDArray[np.uint64]


class Weights(Protocol):
    """What turns distances into weights: :class:`classact.similarity.DistanceDistribution`."""

    def weights(self, distances: FloatArray) -> FloatArray:
        """Weights of distances, of the same shape; 0 for infinite ones."""
        ...


# -- size --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GraphSize:
    """What a graph will take.

    Attributes:
        n: anchors.
        entries: directed edges: two for each pair of steps, unless capped.
    """

    n: int
    entries: int

    @property
    def bytes(self) -> int:
        """Of the finished graph."""
        return 8 * self.entries + 8 * (self.n + 1)

    @property
    def peak_bytes(self) -> int:
        """While it is built: its shards and the graph at once."""
        return 2 * self.bytes + 8 * self.n

    def __str__(self) -> str:
        return f"{self.entries:,} edges, {_size(self.bytes)} on disk, {_size(self.peak_bytes)} while it is built"


def estimate_size(n: int, quantile: float, cap: int | None = None, *, kept: int | None = None) -> GraphSize:
    """The size of a graph before it is built.

    Args:
        n: anchors.
        quantile: K as a fraction.
        cap: most edges of an anchor; None for all.
        kept: pairs i < j at most at the threshold, where they were counted; else K n (n - 1) / 2.

    Returns:
        the size; with a cap an upper bound of what ``quantile`` or ``kept`` lead to.

    Raises:
        ConfigError: K outside (0, 1), a cap below 1, or more windows than a graph can name.
    """
    if not 0 < quantile < 1:
        raise ConfigError(f"expected a quantile K between 0 and 1 (1.5 % is 0.015), got {quantile}.")
    if cap is not None and cap < 1:
        raise ConfigError(f"expected a cap of at least 1 neighbour per anchor, or none, got {cap}.")
    if not 2 <= n < 1 << 31:
        raise ConfigError(f"a graph names 2 to {(1 << 31) - 1:,} windows, got {n:,}. Train online instead.")
    entries = round(quantile * n * (n - 1)) if kept is None else 2 * kept
    return GraphSize(n, entries if cap is None else min(entries, cap * n))


def check_space(folder: Path, size: GraphSize, quantile: float, *, written: int = 0) -> None:
    """Refuse a graph that does not fit on the disk of ``folder``.

    Args:
        folder: where it shall be.
        size: from :func:`estimate_size`.
        quantile: K, for the remedy.
        written: bytes of it that are there already.

    Raises:
        StorageError: giving both sizes, and the cap and K that would fit.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    needed = size.peak_bytes - written
    if needed <= free:
        return
    per_anchor = max(0, (free + written) // size.n - 24) // 16
    fits = (
        f"Cap it to the {per_anchor:,} nearest neighbours per anchor or fewer, lower K from {quantile:g} to "
        f"{quantile * per_anchor * size.n / max(size.entries, 1):.2g}, "
        if per_anchor
        else ""
    )
    raise StorageError(
        f"the similarity graph in {folder} needs {_size(needed)} ({size.entries:,} edges, while it is built), but "
        f"{_size(free)} are free there. {fits or 'Free some space, '}choose a folder on another disk, or train "
        f"online, which needs no graph."
    )


def _size(count: int) -> str:
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def cut_shards(n: int, size: GraphSize) -> NDArray[np.int64]:
    """Boundaries (U + 1,) of the anchors of each shard: about equally many anchors."""
    units = max(-(-size.entries // UNIT_ENTRIES), -(-n * (n - 1) // UNIT_PAIRS), LEAST_UNITS)
    units = min(units, MOST_UNITS, n)
    return np.array([n * u // units for u in range(units + 1)], np.int64)


# -- rows --------------------------------------------------------------------------------------------------------------


@nb.njit(cache=True)  # type: ignore[untyped-decorator]
def _scatter(rows: Any, keys: Any, cursor: Any, out: Any) -> None:
    for k in range(len(rows)):
        out[cursor[rows[k]]] = keys[k]
        cursor[rows[k]] += 1


def _group(rows: IntArray, keys: _Keys, count: int) -> tuple[IntArray, _Keys]:
    """Keys by row, ascending within each, and the rows' lengths."""
    lengths = np.bincount(rows, minlength=count)
    ends = np.cumsum(lengths)
    grouped = np.empty_like(keys)
    _scatter(rows, keys, ends - lengths, grouped)
    for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
        grouped[end - length : end].sort()
    return lengths, grouped


def _nearest(rows: IntArray, keys: _Keys, count: int, cap: int) -> tuple[IntArray, _Keys]:
    """The ``cap`` smallest keys of each row."""
    lengths, grouped = _group(rows, keys, count)
    rows = np.repeat(np.arange(count), lengths)
    keep = np.arange(len(grouped)) - np.repeat(np.cumsum(lengths) - lengths, lengths) < cap
    return rows[keep], grouped[keep]


def _swap(keys: _Keys) -> _Keys:
    return (keys << np.uint64(32)) | (keys >> np.uint64(32))


class _TooManyError(Exception):
    """More edges than shall be held at once."""


def search_rows(
    sweep: Sweep, first: int, last: int, n: int, threshold: float, cap: int | None
) -> tuple[IntArray, IntArray, NDArray[np.int32], FloatArray]:
    """The rows of the anchors first <= i < last.

    Returns:
        lengths (A,), how many neighbours were found before the cap (A,), and the rows one behind the other: neighbours,
        ascending within a row, and distances. Where anchors have far more than average, half of them at a time.
    """
    try:
        return _search(sweep, first, last, n, threshold, cap)
    except _TooManyError:
        middle = (first + last) // 2
        halves = [search_rows(sweep, a, b, n, threshold, cap) for a, b in ((first, middle), (middle, last))]
        lengths, found, indices, distances = (np.concatenate(part) for part in zip(*halves, strict=True))
        return lengths, found, indices, distances


def _search(
    sweep: Sweep, first: int, last: int, n: int, threshold: float, cap: int | None
) -> tuple[IntArray, IntArray, NDArray[np.int32], FloatArray]:
    count = last - first
    found = np.zeros(count, np.int64)
    rows: list[IntArray] = []
    keys: list[_Keys] = []
    held, most = 0, UNIT_ENTRIES
    for pairs in sweep.pairs(first, last, limit=threshold, upper=False):
        row = pairs.left.astype(np.int64) - first
        if len(row) and not (row.min() >= 0 and row.max() < count and pairs.right.max() < n):
            raise RuntimeError(f"a sweep over the anchors {first}..{last} of {n} gave pairs beyond them.")
        found += np.bincount(row, minlength=count)
        # + 0 turns -0, which would be the farthest of all, into 0.
        bits = (pairs.distances.astype(np.float32) + np.float32(0)).view(np.uint32).astype(np.uint64)
        right = pairs.right.astype(np.uint64)
        # One integer for neighbour and distance, so that a row is sorted as fast as numbers are.
        keys.append((right << np.uint64(32)) | bits if cap is None else (bits << np.uint64(32)) | right)
        rows.append(row)
        held += len(row)
        if cap is None and held > 2 * UNIT_ENTRIES and count > 1:
            raise _TooManyError
        if cap is not None and held > most:
            nearest = _nearest(np.concatenate(rows), np.concatenate(keys), count, cap)
            rows, keys = [nearest[0]], [nearest[1]]
            held = len(nearest[0])
            most = max(UNIT_ENTRIES, 2 * held)
    row, key = np.concatenate([np.empty(0, np.int64), *rows]), np.concatenate([np.empty(0, np.uint64), *keys])
    if cap is not None:
        row, key = _nearest(row, key, count, cap)
        key = _swap(key)
    lengths, key = _group(row, key, count)
    indices = (key >> np.uint64(32)).astype(np.int32)
    return lengths, found, indices, (key & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32)


# -- the graph ---------------------------------------------------------------------------------------------------------


@nb.njit(cache=True)  # type: ignore[untyped-decorator]
def _lower_bound(values: Any, first: int, last: int, value: int) -> int:
    while first < last:
        middle = (first + last) // 2
        if values[middle] < value:
            first = middle + 1
        else:
            last = middle
    return first


@parallel
@nb.njit(parallel=True, cache=True)  # type: ignore[untyped-decorator]
def _lookup(indptr: Any, indices: Any, distances: Any, rows: Any, columns: Any, out: Any) -> None:
    # columns ascending and distinct. Whichever is shorter, a row's neighbours or they, is searched in the other.
    for a in nb.prange(len(rows)):
        at, end = indptr[rows[a]], indptr[rows[a] + 1]
        if end - at < len(columns):
            b = 0
            for k in range(at, end):
                b = _lower_bound(columns, b, len(columns), indices[k])
                if b == len(columns):
                    break
                if columns[b] == indices[k]:
                    out[a, b] = distances[k]
        else:
            for b in range(len(columns)):
                at = _lower_bound(indices, at, end, columns[b])
                if at == end:
                    break
                if indices[at] == columns[b]:
                    out[a, b] = distances[at]


@dataclass(frozen=True)
class SimilarityGraph:
    """For every step, the steps at a distance of at most the threshold.

    Attributes:
        card: content of ``graph.json``: identity, n, threshold, quantile, cap, pairs, entries, stats.
        indptr: (N + 1,) int64: the row of step i is ``indptr[i] : indptr[i + 1]`` of the others.
        indices: (E,) int32 neighbours, ascending within a row.
        distances: (E,) float32.
        folder: where it was read from.
    """

    card: Mapping[str, Any]
    indptr: IntArray
    indices: NDArray[np.int32]
    distances: FloatArray
    folder: Path | None = None

    @staticmethod
    def open(folder: Path, identity: Mapping[str, Any] | None = None, *, verify: bool = True) -> SimilarityGraph:
        """Open a graph; its arrays are mapped, not loaded.

        Args:
            folder: written by :func:`build_graph`.
            identity: what it must have been made of; None takes any.
            verify: compare all content with its checksums; wrong lengths are always found.

        Raises:
            CheckpointError: missing, truncated or damaged, naming the file, found and expected.
            ConfigError: made of other data or with other settings, naming the first difference.
        """
        folder = Path(folder)
        _check_files(folder, verify=verify)
        card = read_json(folder / CARD, CheckpointError)
        if card.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder / CARD} has format {card.get('format')!r}, this version of classact reads {FORMAT}. Remove "
                f"that folder and build the graph again."
            )
        if identity is not None:
            check_same(folder / CARD, card, {"identity": identity})
        arrays: dict[str, Any] = {}
        lengths = {"indptr": card["n"] + 1, "indices": card["entries"], "distances": card["entries"]}
        for name, dtype in ARRAYS.items():
            path = folder / f"{name}.npy"
            arrays[name] = np.asarray(np.load(path, mmap_mode="r"))
            if arrays[name].dtype != dtype or arrays[name].shape != (lengths[name],):
                raise CheckpointError(
                    f"{path} holds {arrays[name].dtype} of shape {arrays[name].shape}, expected {np.dtype(dtype)} of "
                    f"shape {(lengths[name],)}. Remove that folder and build the graph again."
                )
        return SimilarityGraph(card, **arrays, folder=folder)

    def __len__(self) -> int:
        return len(self.indptr) - 1

    @property
    def threshold(self) -> float:
        """Largest distance of an edge."""
        return float(self.card["threshold"])

    @property
    def cap(self) -> int | None:
        """Most edges of an anchor, or None."""
        return self.card["cap"]

    def neighbors(self, i: int) -> tuple[NDArray[np.int32], FloatArray]:
        """Steps (E_i,) like step ``i``, ascending, and their distances (E_i,).

        Raises:
            ConfigError: no such step.
        """
        self._check_rows(np.array([i], np.int64))
        row = slice(int(self.indptr[i]), int(self.indptr[i + 1]))
        return self.indices[row], self.distances[row]

    def degrees(self) -> IntArray:
        """(N,) how many edges each step has, after the cap."""
        return np.diff(self.indptr)

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.csr_array`` (N, N) of distances, in which a stored 0 is an edge, too.

        It shares ``indices`` and ``distances``, unless 2^31 edges or more make scipy want wider indices.
        """
        from scipy.sparse import csr_array

        indptr = self.indptr.astype(np.int32) if len(self.indices) < 1 << 31 else self.indptr  # one type for both
        return csr_array((self.distances, self.indices, indptr), shape=(len(self), len(self)))

    def distances_of(self, rows: IntArray, anchors: int | None = None) -> FloatArray:
        """(B, C) float32 distances of the first B of the steps ``rows`` (C,) to all of these, infinite without an edge.

        Equal steps have the distance 0. In a capped graph an edge of either direction counts: that j is not among the m
        nearest of i makes it no stranger to i, if i is among those of j.

        Args:
            rows: steps.
            anchors: B; None: all C.

        Raises:
            ConfigError: no such step.
        """
        rows = np.asarray(rows, np.int64)
        self._check_rows(rows)
        columns, places = np.unique(rows, return_inverse=True)
        every = anchors is None or anchors == len(rows)
        asked = columns if every else np.unique(rows[:anchors])
        found = self._between(asked, columns)
        if self.cap is not None:
            found = np.minimum(found, (found if every else self._between(columns, asked)).T)
        found[np.arange(len(asked)), np.searchsorted(columns, asked)] = 0.0
        if every and np.array_equal(rows, columns):
            return found
        return found[np.searchsorted(asked, rows[:anchors])[:, None], places[None, :]]

    def _between(self, rows: IntArray, columns: IntArray) -> FloatArray:
        found = np.full((len(rows), len(columns)), np.inf, np.float32)
        _lookup(self.indptr, self.indices, self.distances, rows, columns, found)
        return found

    def weights(self, rows: IntArray, distribution: Weights, anchors: int | None = None) -> FloatArray:
        """(B, C) soft positive weights of a batch of steps, as :meth:`classact.similarity.ActionSimilarity.weights`.

        Args:
            rows: (C,) steps; one that occurs twice is the best positive of itself (weight 1).
            distribution: threshold and CDF; 0 for distances above the threshold.
            anchors: B; None: all C.
        """
        return mark_duplicates(distribution.weights(self.distances_of(rows, anchors)), rows)

    def _check_rows(self, rows: IntArray) -> None:
        # The compiled loops check no bounds.
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise ConfigError(f"expected steps within 0..{len(self) - 1}, got {rows.min()}..{rows.max()}.")


def _check_files(folder: Path, *, verify: bool) -> None:
    again = "Remove that folder and build the graph again."
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist or is not a folder: build the similarity graph first.")
    sums = read_json(folder / CHECKSUMS, CheckpointError)
    for name in (CARD, *(f"{array}.npy" for array in ARRAYS)):
        if name not in sums or not (folder / name).exists():
            raise CheckpointError(f"{folder / name} is missing: the similarity graph is incomplete. {again}")
        size, digest = sums[name]
        if (found := (folder / name).stat().st_size) != size:
            raise CheckpointError(
                f"{folder / name} has {found:,} bytes, expected {size:,}: it was truncated or overwritten. {again}"
            )
        if verify and (other := sha256_file(folder / name)) != digest:
            raise CheckpointError(
                f"{folder / name} has SHA-256 {other[:12]}..., expected {digest[:12]}...: its content is damaged. "
                f"{again}"
            )


# -- building ----------------------------------------------------------------------------------------------------------


def build_graph(
    folder: Path,
    sweep: Sweep,
    n: int,
    threshold: float,
    identity: Mapping[str, Any],
    ranks: Ranks | None = None,
    progress: Progress | None = None,
    *,
    quantile: float,
    cap: int | None = None,
    kept: int | None = None,
) -> SimilarityGraph:
    """Search all neighbours and write them to ``folder``; or open the graph that is there.

    Shards are kept in ``FOLDER.shards`` until the graph is whole; the same command continues with them.

    Args:
        folder: of the graph, on a disk that all ranks share.
        sweep: distances of the windows.
        n: number of windows.
        threshold: largest distance of an edge.
        identity: JSON that says of which data and settings the distances are.
        ranks: the processes that share the work; None is this one alone.
        progress: called with (pairs done, pairs to do, status), where (i, j) and (j, i) are two pairs; with several
            ranks, of this rank's share.
        quantile: K that ``threshold`` belongs to; noted in the graph, and the size is estimated from it.
        cap: keep the m nearest of each anchor; of equally near ones those with the smaller number.
        kept: pairs i < j at most at the threshold, where they were counted.

    Returns:
        The graph, on every rank.

    Raises:
        ConfigError: ``folder`` holds a graph, or shards, of other data or settings.
        CheckpointError: the graph in ``folder`` is damaged.
        StorageError: not enough room on the disk, said before the search begins; or the disk became full.
        TrainingInterrupted: Ctrl-C or SIGTERM; finished shards are kept.
    """
    ranks = ranks or Ranks()
    folder = Path(folder)
    size = estimate_size(n, quantile, cap, kept=kept)
    cut = cut_shards(n, size)
    card = {
        "identity": plain(identity),
        "format": FORMAT,
        "n": n,
        "quantile": quantile,
        "threshold": float(np.float32(threshold)),
        "cap": cap,
    }
    check_ranks(ranks, card)
    shards = _Shards(folder.with_name(f"{folder.name}.shards"), card, cut, sweep)

    def prepare() -> list[int] | None:
        if folder.exists():
            graph = SimilarityGraph.open(folder)
            check_same(folder / CARD, graph.card, card)
            shutil.rmtree(shards.folder, ignore_errors=True)  # of a launch that ended between its last two steps
            return None
        drop(list(shards.folder.glob(".shard*.tmp")))
        for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):  # of a launch that was killed while it assembled
            shutil.rmtree(leftover, ignore_errors=True)
        left = shards.missing()
        written = sum(file.stat().st_size for file in shards.folder.glob("shard-*"))
        check_space(folder, size, quantile, written=written)
        logger.info("similarity graph: about %s", size)
        return left

    left = ranks.on_first(prepare)
    if left is not None:
        share = ranks.share(left)
        with interruptible() as interrupted:
            for _ in shards.search(share, progress, done=len(cut) - 1 - len(left) if ranks.world == 1 else 0):
                if interrupted():
                    raise TrainingInterrupted(
                        f"stopped with {len(shards.present()):,} of {len(cut) - 1:,} shards in {shards.folder}; the "
                        f"same command goes on from there."
                    )
        ranks.barrier()

        def finish() -> None:
            for unit in shards.missing(verify=True):
                logger.warning("%s is searched again.", shards.path(unit))
                shards.write(unit)
            write_folder(folder, shards.assemble)
            shutil.rmtree(shards.folder, ignore_errors=True)

        ranks.on_first(finish)
    return SimilarityGraph.open(folder, verify=False)


class _Shards:
    """The rows of one unit of anchors each, in files of their own."""

    def __init__(self, folder: Path, card: dict[str, Any], cut: NDArray[np.int64], sweep: Sweep) -> None:
        self.folder, self.card, self.cut, self.sweep = folder, card | {"shards": len(cut) - 1}, cut, sweep

    def __len__(self) -> int:
        return len(self.cut) - 1

    def path(self, unit: int) -> Path:
        return self.folder / f"shard-{unit:05d}.safetensors"

    def present(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*.safetensors"))

    def missing(self, *, verify: bool = False) -> list[int]:
        """Units without a whole shard.

        Raises:
            ConfigError: shards of other data or settings.
        """
        there = set()
        for path in self.present():
            try:
                with open_sealed(path, verify=verify) as file:
                    check_same(path, file.card, self.card)
                    there.add(int(file.card["unit"]))
            except DamagedFileError as error:
                logger.warning("%s Its pairs are searched again.", error)
        return [unit for unit in range(len(self)) if unit not in there]

    def search(self, units: list[int], progress: Progress | None, done: int) -> Iterator[int]:
        """Write the shards of ``units``; gives each when it is on disk."""
        n = self.card["n"]
        total = done + len(units)
        entries = 0

        def report(count: int) -> None:
            if progress is not None:
                progress(n * (n - 1) * count // len(self), n * (n - 1) * total // len(self), f"{entries:,} edges")

        report(done)
        for count, unit in enumerate(units, done + 1):
            entries += self.write(unit)
            report(count)
            yield unit

    def write(self, unit: int) -> int:
        """Search and write one shard; returns its edges."""
        n, cap = self.card["n"], self.card["cap"]
        first, last = int(self.cut[unit]), int(self.cut[unit + 1])
        expected = max(1, round(self.card["quantile"] * (n - 1)))
        step = max(1, UNIT_ENTRIES // (min(cap, expected) if cap is not None else expected))
        parts = [
            search_rows(self.sweep, at, min(at + step, last), n, self.card["threshold"], cap)
            for at in range(first, last, step)
        ]
        names = ("lengths", "found", "indices", "distances")
        columns = [list(column) for column in zip(*parts, strict=True)]
        del parts
        arrays: dict[str, NDArray[Any]] = {}
        for name in names:
            arrays[name] = np.concatenate(columns.pop(0))  # one at a time: what is joined is let go
        write_sealed(self.path(unit), arrays, self.card | {"unit": unit, "first": first, "last": last})
        return len(arrays["indices"])

    def assemble(self, folder: Path) -> None:
        """Write the files of the graph; the shards are whole."""
        lengths = np.concatenate([self._array(unit, "lengths") for unit in range(len(self))])
        found = np.concatenate([self._array(unit, "found") for unit in range(len(self))])
        indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        entries = int(indptr[-1])
        np.save(folder / "indptr.npy", indptr)
        for name in ("indices", "distances"):
            with (folder / f"{name}.npy").open("wb") as out:
                _write_header(out, ARRAYS[name], entries)
                for unit in range(len(self)):
                    with open_sealed(self.path(unit), verify=False) as file:
                        for (piece,) in file.pieces(name):
                            out.write(np.ascontiguousarray(piece).data)
        card = {key: value for key, value in self.card.items() if key != "shards"}
        card |= {"pairs": int(found.sum()) // 2, "entries": entries, "stats": {"positives_per_anchor": _stats(found)}}
        (folder / CARD).write_text(json.dumps(card, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def _array(self, unit: int, name: str) -> IntArray:
        with open_sealed(self.path(unit), verify=False) as file:
            return file.array(name)


def _write_header(file: BinaryIO, dtype: type, length: int) -> None:
    form: Any = np.lib.format
    header = {"descr": form.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (length,)}
    form.write_array_header_1_0(file, header)


def _stats(found: IntArray) -> dict[str, Any]:
    """Neighbours per anchor before the cap."""
    return {
        "min": int(found.min()),
        "median": float(np.median(found)),
        "mean": float(found.mean()),
        "max": int(found.max()),
        "without": int((found == 0).sum()),
    }
