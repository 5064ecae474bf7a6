"""DTW on the GPU: all window pairs of a stream, and the distances of two batches of windows.

The kernels (:mod:`classact.similarity.gpu_kernels`) add and square in the CPU's order, without fused multiply-add, so
that a distance has the same bits on every device, in every tile and on both sides of the diagonal. Squares beyond
float32 give an infinite distance, never NaN. torch and triton are imported on first use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from classact.data.types import IntArray
from classact.errors import ConfigError
from classact.similarity.counts import DistanceCounts
from classact.similarity.reference import check_alignment, check_finite, float32_limit
from classact.similarity.stream import Pairs, Sweep, WindowStream

if TYPE_CHECKING:
    import torch

LANES = 32  # threads of a program: one warp, so that pruning skips the work of a warp where its own windows allow it
ANCHORS = 8  # aligned by a program in turn: neighbours share all but one row of costs, by then in its L1 cache
TILE_ANCHORS = 512  # anchors of a tile: their points are 3 % more than their windows at T = 16
MEMORY = 2 << 30  # bytes of device memory for a sweep's costs, counters and pairs, but at most half of what is free
BLOCK = 1 << 21  # pairs that one block of GpuSweep.pairs holds at most: 24 MiB
COUNTED = 1 << 30  # pairs after which 31-bit counters are checked: one at less than half cannot overflow until then
LONGEST_STREAM = (1 << 31) - (1 << 27)  # steps that 32 bits can number, with room for a tile
WIDEST = 128  # accumulated costs of a thread's windows that fit into its registers
_READ = 1 << 22  # counters read out at once
_GRID = 1 << 15  # rows of a batch at once: the second dimension of a grid has at most 65,535 programs
_BATCH_CELLS = 1 << 26  # costs of a batch in memory at once: 256 MiB


def _kernels(device: torch.device) -> Any:
    import torch

    try:
        import triton
    except ImportError as error:
        raise ConfigError(
            f"DTW on {device} needs triton, which comes with torch's builds for CUDA on Linux and is not here "
            f"({error}). Install such a build of torch, or compute on the CPU."
        ) from error
    if not hasattr(triton, "knobs"):
        raise ConfigError(
            f"DTW on {device} needs triton 3.4 or newer, got {triton.__version__}. Install torch 2.8 or newer, or "
            f"compute on the CPU."
        )
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"DTW on {device} needs a CUDA GPU, and torch {torch.__version__} finds none. Check the driver and that "
            f"torch was built for CUDA, or compute on the CPU."
        )
    if device.type != "cuda" and not triton.knobs.runtime.interpret:
        raise ConfigError(
            f"expected a CUDA device for DTW on the GPU, got {device}. Triton kernels run elsewhere in its "
            f"interpreter alone: set TRITON_INTERPRET=1 before Python starts, to test."
        )
    from classact.similarity import gpu_kernels

    return gpu_kernels


def _width(steps: int, band: int | None) -> int:
    """Accumulated costs in the row of one window; ConfigError for more than :data:`WIDEST`."""
    width = steps if band is None else 2 * band + 1
    if width > WIDEST:
        raise ConfigError(
            f"windows of {steps} steps with a band of {band} need {width} registers for a row of "
            f"accumulated costs; the GPU's kernel has {WIDEST}. Use shorter windows or a narrower band, or the CPU."
        )
    return width


def launch_options(width: int, neighbours: int) -> dict[str, Any]:
    """Compiler options of the kernel ``sweep`` for ``neighbours`` rows of ``width`` accumulated costs in registers."""
    # By default the assembler stops at 128 registers and spills.
    return {"num_warps": 1, "enable_fp_fusion": False, "maxnreg": 168 if width * neighbours <= 72 else 255}


def _narrowed(band: int | None, T: int, U: int) -> int | None:
    """None for a band that excludes nothing."""
    return None if band is None or band >= max(T, U) - 1 else band


def _pattern(value: float | np.float32) -> int:
    return int(np.float32(value).view(np.int32))


def _after(ascending: NDArray[np.int32], value: int) -> int:
    """How many values are at most ``value``; searched for as int32, or numpy would convert a copy of all."""
    return int(np.searchsorted(ascending, np.int32(value), side="right"))


@dataclass(frozen=True)
class _Layout:
    """The stream with every run of neighbouring windows aligned to a multiple of V, as the kernels read it.

    Attributes:
        source: (P,) int64: the stream's point at each point of the layout.
        positions: (N,) int32: first point of each window.
        group_columns, group_windows, group_sizes: (G,) int32: per group of V neighbouring windows (fewer at the end of
            a run): its first point divided by V, first window, number of windows.
    """

    source: IntArray
    positions: NDArray[np.int32]
    group_columns: NDArray[np.int32]
    group_windows: NDArray[np.int32]
    group_sizes: NDArray[np.int32]

    @staticmethod
    def build(stream: WindowStream, V: int) -> _Layout:
        starts, n = stream.starts, len(stream)
        first = np.flatnonzero(np.diff(starts, prepend=-2) != 1)  # of each run
        lengths = np.diff(first, append=n)
        span = lengths + stream.horizon - 1
        aligned = -(-span // V) * V
        begin = np.cumsum(aligned) - aligned
        if int(aligned.sum()) > LONGEST_STREAM:
            raise ConfigError(
                f"a stream of {int(aligned.sum()):,} steps, padding included, is longer than the {LONGEST_STREAM:,} "
                f"that a GPU sweep can number. Sweep over fewer episodes, or on the CPU."
            )
        source = np.arange(int(aligned.sum())) - np.repeat(begin - starts[first], aligned)
        source = np.minimum(source, np.repeat(starts[first] + span - 1, aligned))
        positions = np.arange(n) + np.repeat(begin - first, lengths)
        groups = -(-lengths // V)
        run = np.repeat(np.arange(len(first)), groups)
        within = np.arange(len(run)) - np.repeat(np.cumsum(groups) - groups, groups)
        to = np.int32
        return _Layout(
            source,
            positions.astype(to),
            (begin[run] // V + within).astype(to),
            (first[run] + within * V).astype(to),
            np.minimum(V, lengths[run] - within * V).astype(to),
        )


@dataclass(frozen=True)
class _Tile:
    """A block of anchors times a block of groups, with the costs that their pairs need."""

    anchor: int
    anchors: int
    group: int
    groups: int
    origin: int  # first point of the anchors
    rows: int
    column: int  # first column of the planes
    width: int  # columns of each plane


class GpuSweep(Sweep):
    """All window pairs of a stream, on one GPU; results have the same bits for every split into anchors.

    Args:
        stream, cost, band: as for :func:`classact.similarity.make_sweep`.
        memory: bytes of device memory beside the stream; None for :data:`MEMORY`, or half of the free memory.

    Raises:
        ConfigError: unknown cost, negative band, no CUDA GPU, no triton, windows wider than :data:`WIDEST`, a stream
            longer than :data:`LONGEST_STREAM`.
    """

    def __init__(
        self,
        stream: WindowStream,
        *,
        cost: str = "sqeuclidean",
        band: int | None = None,
        device: str = "cuda",
        memory: int | None = None,
    ) -> None:
        check_alignment(cost, band)
        import torch

        self._device = torch.device(device)
        self.device = self._device.type
        self._kernels = _kernels(self._device)
        self._stream = stream
        self._squared = cost == "sqeuclidean"
        self._band = _narrowed(band, stream.horizon, stream.horizon)
        self._width = _width(stream.horizon, self._band)
        # Windows of a thread: as many as fit their accumulated costs into its registers.
        self._V = 4 if self._width <= 16 and self._band is None else 2 if self._width <= 40 else 1
        self._layout = _Layout.build(stream, self._V)
        self._open: _Counters | None = None
        self._planes = len(self._layout.source) // self._V
        if memory is None:
            memory = MEMORY if self.device == "cuda" else MEMORY // 8
            if self.device == "cuda":
                memory = min(memory, torch.cuda.mem_get_info(self._device)[0] // 2)
        self._table_size = max(memory * 3 // 4 // 4, 1)
        self._tile_cells = max(min(memory // 8 // 4, 1 << 26), 1)
        self._tile_pairs = max(memory // 32 // 4, 1)

    @cached_property
    def _values(self) -> torch.Tensor:
        """(D, V, P / V) float32: point u of the layout in plane u % V, at u // V."""
        import torch

        shape = (self._stream.dim, self._V, self._planes)
        values = torch.empty(shape, dtype=torch.float32, device=self._device)
        for d, row in enumerate(self._stream.values):  # one by one: a copy of the stream can be gigabytes
            planes = np.ascontiguousarray(row[self._layout.source].reshape(self._planes, self._V).T)
            values[d] = torch.from_numpy(planes).to(self._device)
        return values

    @cached_property
    def _tables(self) -> tuple[torch.Tensor, ...]:
        import torch

        of = self._layout
        arrays = (of.positions, of.group_columns, of.group_windows, of.group_sizes)
        return tuple(torch.from_numpy(a).to(self._device) for a in arrays)

    @cached_property
    def _margin(self) -> int:
        """Readable costs before and behind those of a tile: a band's cells beyond the matrix's corners."""
        return (self._band or 0) + self._V + 1

    @cached_property
    def _costs(self) -> torch.Tensor:
        import torch

        smallest = self._stream.horizon * self._V * (self._reach + 1)
        # Zeros: the margins must hold no NaN.
        return torch.zeros(max(self._tile_cells, smallest) + 2 * self._margin, device=self._device)

    @property
    def _reach(self) -> int:
        """Columns of a plane that the windows of a group reach beyond its first."""
        return (self._stream.horizon + self._V - 2) // self._V

    def _tiles(self, first: int, last: int, pairs: int | None = None) -> Iterator[_Tile]:
        """Tiles that cover the pairs of the anchors first <= i < last, of at most ``pairs`` pairs (but at least one
        group).
        """
        of, V, T = self._layout, self._V, self._stream.horizon
        n = len(of.positions)
        if not 0 <= first <= last <= n:
            raise ConfigError(f"expected anchors within 0..{n}, got {first}..{last}.")
        # Few anchors rather than no room for a program's windows.
        room = self._tile_cells // (V * (LANES + self._reach))
        rows = max(min(TILE_ANCHORS + T - 1, room), T)
        even = -(-(last - first) // max(-(-(last - first) // TILE_ANCHORS), 1))
        while first < last and first + 1 < n:
            origin = int(of.positions[first])
            end = _after(of.positions, origin + rows - T)
            end = min(end, last, first + even)
            needed = int(of.positions[end - 1]) + T - origin
            group = _after(of.group_windows, first + 1) - 1
            most = len(of.group_columns) if pairs is None else max(pairs // (V * (end - first)), 1)
            while group < len(of.group_columns):
                column = int(of.group_columns[group])
                furthest = column + self._tile_cells // (needed * V) - 1 - self._reach
                stop = _after(of.group_columns, furthest)
                stop = max(min(stop, group + most), group + 1)
                width = int(of.group_columns[stop - 1]) - column + 1 + self._reach
                yield _Tile(first, end - first, group, stop - group, origin, needed, column, width)
                group = stop
            first = end

    def _run(
        self,
        tile: _Tile,
        limit: np.float32,
        *,
        prune: bool,
        out: torch.Tensor | None = None,
        counters: _Counters | None = None,
        lows: torch.Tensor | None = None,
        number: int = 0,
    ) -> None:
        """Start the kernels of a tile: its distances go to ``out``, or into ``counters``.

        Of the latter, lows[number] are neither zero nor in the table.
        """
        import torch

        kernels, values, costs, V, T = self._kernels, self._values, self._costs, self._V, self._stream.horizon
        ld = V * tile.width
        counting = counters is not None
        low, table, zeros = (0, costs, costs) if counters is None else (counters.low, counters.table, counters.zeros)
        with torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
            kernels.point_distances[-(-ld // kernels.COLUMNS), -(-tile.rows // kernels.ROWS)](
                *(values, values, costs, self._margin, tile.origin, tile.rows, self._planes, V * self._planes),
                *(tile.column, ld, tile.width, self._planes, self._planes, V * self._planes, self._stream.dim),
                V=V,
                SQUARED=self._squared,
                ROWS=kernels.ROWS,
                COLUMNS=kernels.COLUMNS,
                num_warps=4,
                enable_fp_fusion=False,
            )
            kernels.sweep[-(-tile.groups // LANES), -(-tile.anchors // ANCHORS)](
                *(costs, *self._tables, costs if out is None else out, table, zeros, costs if lows is None else lows),
                *(self._margin, ld, tile.width, tile.origin, tile.column, tile.anchor, tile.anchors),
                *(tile.group, tile.groups, tile.groups * V, float(limit), low, number),
                T=T,
                U=T,
                V=V,
                BAND=self._band,
                STEP=1,
                LANES=LANES,
                ANCHORS=ANCHORS,
                LATER=True,
                COUNT=counting,
                PRUNE=prune and bool(np.isfinite(limit)),
                **launch_options(self._width, V),
            )

    def _start(self, tile: _Tile, limit: np.float32, *, prune: bool) -> torch.Tensor:
        """(A, G * V) float32, flat, asynchronous: distances of at most ``limit``, -1 for other pairs."""
        import torch

        out = torch.full((tile.anchors * tile.groups * self._V,), -1.0, device=self._device)
        self._run(tile, limit, prune=prune, out=out)
        return out

    def _kept(self, tile: _Tile, out: torch.Tensor) -> Iterator[Pairs]:
        """The pairs of :meth:`_start` in blocks, ascending by left, then right window."""
        import torch

        size = tile.groups * self._V
        found = torch.nonzero(out >= 0).flatten()
        for start in range(0, len(found), BLOCK):
            kept = found[start : start + BLOCK]
            column = kept % size
            left = (kept // size).int() + tile.anchor
            right = self._tables[2][tile.group + column // self._V] + (column % self._V).int()
            yield Pairs(_unsigned(left), _unsigned(right), out[kept].cpu().numpy())

    def pairs(self, first: int, last: int, *, limit: float = np.inf, prune: bool = True) -> Iterator[Pairs]:
        """Blocks of at most :data:`BLOCK` pairs; the GPU works on the next while the caller has this one.

        ``prune`` skips the alignment of a warp's windows if the first and last steps alone are farther apart than
        ``limit``.
        """
        largest = float32_limit(limit)
        waiting: Iterator[Pairs] = iter(())
        for tile in self._tiles(first, last, self._tile_pairs):
            ready = next(waiting, None)
            begun = self._kept(tile, self._start(tile, largest, prune=prune))
            if ready is not None:
                yield ready
                yield from waiting
            waiting = begun
        yield from waiting

    def count(
        self,
        first: int,
        last: int,
        limit: float,
        counts: DistanceCounts,
        *,
        prune: bool = True,
        defer: bool = False,
    ) -> None:
        """Count on the GPU, with one counter per float32 value of the 48 octaves (fewer with less memory) below the
        largest possible distance.

        Reading the counters out takes up to seconds, and also happens on a call with other ``counts``, another limit or
        without ``defer``. Tiles with distances below those octaves are computed twice. Distances above the limit of
        ``counts`` are a ConfigError.
        """
        import torch

        largest = float32_limit(limit)
        open_ = self._open
        if open_ is None or open_.counts is not counts or open_.limit != largest:
            self.settle()
            open_ = self._open = self._counters(counts, largest)
        smaller = np.int32(open_.low - 1).view(np.float32)
        for tiles in _batches(self._tiles(first, last), self._V):
            open_.unread += sum(tile.anchors * tile.groups * self._V for tile in tiles)
            if open_.unread > COUNTED:
                if int(open_.table.max()) >= COUNTED:
                    self._read(open_)
                open_.unread = sum(tile.anchors * tile.groups * self._V for tile in tiles)
            lows = torch.zeros(len(tiles), dtype=torch.int32, device=self._device)
            for number, tile in enumerate(tiles):
                self._run(tile, largest, prune=prune, counters=open_, lows=lows, number=number)
            for number in torch.nonzero(lows).flatten().tolist():
                again = self._start(tiles[number], smaller, prune=prune)
                for block in self._kept(tiles[number], again):
                    few = block.distances[block.distances > 0]
                    if len(few):
                        counts.add(few)
        if not defer:
            self.settle()

    def settle(self) -> None:
        """See :meth:`classact.similarity.stream.Sweep.settle`."""
        if self._open is not None:
            self._read(self._open)
            self._open = None

    @cached_property
    def _bound(self) -> np.float32:
        """Upper bound on all distances: T times the cost across the bounding box of all points."""
        cost = 0.0
        for row in self._stream.values:
            points = row[self._layout.source]
            cost += (float(points.max(initial=0)) - float(points.min(initial=0))) ** 2
        cost = self._stream.horizon * (cost if self._squared else math.sqrt(cost))
        with np.errstate(over="ignore"):
            return np.float32(1.01 * cost)  # 1 % for rounding

    def _counters(self, counts: DistanceCounts, limit: np.float32) -> _Counters:
        import torch

        top = max(min(_pattern(limit), _pattern(self._bound)), 1)
        size = min(self._table_size, top)
        table = torch.zeros(size, dtype=torch.int32, device=self._device)
        zeros = torch.zeros(1, dtype=torch.int64, device=self._device)
        return _Counters(counts, limit, top - size + 1, table, zeros)

    def _read(self, of: _Counters) -> None:
        import torch

        for start in range(0, len(of.table), _READ):
            part = of.table[start : start + _READ]
            at = torch.nonzero(part).flatten()
            if len(at):
                values = (at + (of.low + start)).int().cpu().numpy().view(np.float32)
                of.counts.add_counted(values, part[at].long().cpu().numpy())
        of.table.zero_()
        zeros = of.zeros.cpu().numpy()
        if zeros[0]:
            of.counts.add_counted(np.zeros(1, np.float32), zeros)
            of.zeros.zero_()


@dataclass
class _Counters:
    """Distances counted on the GPU and not yet added to ``counts``.

    Attributes:
        low: the bit pattern that table[0] counts.
        table: (L,) int32: distances of pattern low + l.
        zeros: (1,) int64: distances of zero, the only value that may be very frequent.
        unread: pairs since no counter was above :data:`COUNTED`.
    """

    counts: DistanceCounts
    limit: np.float32
    low: int
    table: torch.Tensor
    zeros: torch.Tensor
    unread: int = 0


def _unsigned(numbers: torch.Tensor) -> NDArray[np.uint32]:
    return numbers.cpu().numpy().view(np.uint32)


def _batches(tiles: Iterator[_Tile], V: int) -> Iterator[list[_Tile]]:
    """Tiles in lists of at most :data:`COUNTED` pairs (but at least one tile)."""
    batch: list[_Tile] = []
    pairs = 0
    for tile in tiles:
        more = tile.anchors * tile.groups * V
        if batch and (pairs + more > COUNTED or len(batch) == 1024):
            yield batch
            batch, pairs = [], 0
        batch.append(tile)
        pairs += more
    if batch:
        yield batch


def dtw_pairwise_torch(
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    *,
    cost: str = "sqeuclidean",
    band: int | None = None,
    limit: float = math.inf,
    check: bool = True,
) -> torch.Tensor:
    """DTW distances between all windows of two sets on a CUDA device, as :func:`classact.similarity.dtw_pairwise`.

    ``check`` refuses NaN and infinite values, which synchronises with the GPU.

    Raises:
        ConfigError: as there; devices that do not match, windows of y wider than :data:`WIDEST`, no triton.
        DataError: NaN or infinite values.
    """
    import torch

    check_alignment(cost, band)
    kernels = _kernels(x.device)
    largest = float32_limit(limit)
    same = y is None or y is x
    y = x if y is None else y
    if x.ndim != 3 or y.ndim != 3 or x.shape[2] != y.shape[2] or 0 in x.shape or 0 in y.shape:
        raise ConfigError(
            f"expected windows of shapes (N, T, D) and (M, T', D) with equal D, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}."
        )
    if x.device != y.device:
        raise ConfigError(f"expected both sets on one device, got {x.device} and {y.device}.")
    x, y = x.detach().float(), y.detach().float()
    if check:
        for name, values in (("x", x),) if same else (("x", x), ("y", y)):
            if not bool(torch.isfinite(values).all()):
                check_finite(name, values.cpu().numpy())
    (n, T, D), (m, U, _) = x.shape, y.shape
    out = torch.full((n, m), math.inf, device=x.device)
    if band is not None and abs(T - U) > band:
        return out
    band = _narrowed(band, T, U)
    width = _width(U, band)
    points = x.reshape(n * T, D).T.contiguous()
    # Step q of 32 neighbouring windows lies side by side: a warp reads it at once, and the next is 32 further on.
    lanes = -(-m // LANES)
    columns = torch.zeros((lanes * LANES, U, D), device=x.device)
    columns[:m] = y
    columns = columns.view(lanes, LANES, U, D).permute(3, 0, 2, 1).contiguous()  # (D, lanes, U, LANES)
    windows = torch.arange(m, dtype=torch.int32, device=x.device)
    tables = (
        torch.arange(n, dtype=torch.int32, device=x.device) * T,
        windows // LANES * (U * LANES) + windows % LANES,
        windows,
        torch.ones_like(windows),
    )
    wide = min(lanes, max(_BATCH_CELLS // (T * U * LANES), 1))
    tall = min(n, max(_BATCH_CELLS // (T * U * LANES * wide), 1), _GRID // T)
    margin = (width + 1) * LANES
    costs = torch.zeros(tall * T * wide * U * LANES + 2 * margin, device=x.device)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        for i in range(0, n, tall):
            anchors = min(tall, n - i)
            for block in range(i // LANES if same else 0, lanes, wide):  # the rest is symmetric
                ld = min(wide, lanes - block) * U * LANES
                j = block * LANES
                groups = min(wide * LANES, m - j)
                kernels.point_distances[-(-ld // kernels.COLUMNS), -(-anchors * T // kernels.ROWS)](
                    *(points, columns, costs, margin, i * T, anchors * T, n * T, n * T),
                    *(j * U, ld, ld, lanes * U * LANES, lanes * U * LANES, lanes * U * LANES, D),
                    V=1,
                    SQUARED=cost == "sqeuclidean",
                    ROWS=kernels.ROWS,
                    COLUMNS=kernels.COLUMNS,
                    num_warps=4,
                    enable_fp_fusion=False,
                )
                kernels.sweep[-(-groups // LANES), anchors](
                    *(costs, *tables, out[i:, j:], costs, costs, costs),
                    *(margin, ld, ld, i * T, j * U, i, anchors, j, groups, m, float(largest), 0, 0),
                    T=T,
                    U=U,
                    V=1,
                    BAND=band,
                    STEP=LANES,
                    LANES=LANES,
                    ANCHORS=1,
                    LATER=False,
                    COUNT=False,
                    PRUNE=bool(np.isfinite(largest)),
                    **launch_options(width, 1),
                )
    return out.triu() + out.triu(1).T if same else out
