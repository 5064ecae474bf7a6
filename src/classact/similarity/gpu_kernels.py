"""Triton kernels of the GPU sweep: point distances of a tile of the stream, then the alignments of its window pairs.

Imported by :mod:`classact.similarity.gpu` alone: it needs triton.

A tile is a block of anchors times a block of windows. :func:`point_distances` writes the step costs between their
points, each computed once however many pairs share it. :func:`sweep` runs the recurrence, one thread for ``V``
neighbouring windows: their cost matrices overlap, so a row of the T x V costs takes T + V - 1 loads. The costs lie in V
planes (column k in plane k % V, at k // V), so that these loads are contiguous over threads. The row of accumulated
costs stays in registers.

Costs are not negative, so floats order like their bit patterns; the minimum of three is taken over patterns because
sm_90 does it in one instruction for integers and in two for floats.
"""

# mypy: ignore-errors
from __future__ import annotations

import triton
import triton.language as tl

ROWS = 16  # rows of costs per program of point_distances
COLUMNS = 512  # columns of costs per program of point_distances
INFINITY = tl.constexpr(0x7F800000)  # bit pattern
_COST_SCALARS = ["row", "rows", "x_plane", "x_step", "column", "columns", "width", "y_plane", "y_columns", "y_step"]
_SWEEP_SCALARS = [
    *("margin", "ld", "width", "origin", "column", "anchor", "anchors", "group", "groups", "out_ld"),
    *("limit", "low", "tile"),
]


@triton.jit(do_not_specialize=[*_COST_SCALARS, "D", "margin"])
def point_distances(
    X,
    Y,
    C,
    margin,
    row,
    rows,
    x_plane,
    x_step,
    column,
    columns,
    width,
    y_plane,
    y_columns,
    y_step,
    D,
    V: tl.constexpr,
    SQUARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """C[margin + r * columns + n]: cost of point ``row + r`` of X and column n of Y, for r < rows and n < columns.

    X holds D times V planes of ``x_plane`` points, point u in plane u % V at u // V; dimensions are ``x_step`` apart.
    Column n is point ``column + n % width`` of plane n // width of Y; planes are ``y_plane`` and dimensions ``y_step``
    apart. Where a plane of Y, of ``y_columns`` points, has no such point, the cost is that to the origin.
    """
    r = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    u = row + r
    at = column + n % width
    x = X + (u % V).to(tl.int64) * x_plane + u // V
    y = Y + (n // width).to(tl.int64) * y_plane + at
    has_row = r < rows
    has_column = (n < columns) & (at < y_columns)
    cost = tl.zeros((ROWS, COLUMNS), tl.float32)
    for _ in range(D):
        a = tl.load(x, mask=has_row, other=0.0)
        b = tl.load(y, mask=has_column, other=0.0)
        e = a[:, None] - b[None, :]
        cost += e * e
        x += x_step
        y += y_step
    if not SQUARED:
        cost = tl.sqrt_rn(cost)
    to = C + margin + r[:, None] * columns + n[None, :]
    tl.store(to, cost, mask=has_row[:, None] & (n < columns)[None, :])


@triton.jit
def _plus(cost, pattern):
    """cost + the float32 whose bit pattern is ``pattern``, as a bit pattern."""
    return (cost + pattern.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True)


@triton.jit
def _costs(at, width, STEP: tl.constexpr, FIRST: tl.constexpr, COUNT: tl.constexpr, V: tl.constexpr):
    """Columns FIRST .. FIRST + COUNT - 1 of one row of costs."""
    c = ()
    for k in tl.static_range(FIRST, FIRST + COUNT):
        c += (tl.load(at + (k + 256 * V) % V * width + ((k + 256 * V) // V - 256) * STEP),)
    return c


@triton.jit
def _advance(G, c, W: tl.constexpr, V: tl.constexpr, BAND: tl.constexpr):
    """The next row G of accumulated costs of V windows, W bit patterns each; cell k of window v costs c[v + k].

    Within a band the cells move by one column per row, so that the cell above is the next one of the state.
    """
    SHIFT: tl.constexpr = 0 if BAND is None else 1
    out = ()
    for v in tl.static_range(V):
        for k in tl.static_range(W):
            if k + SHIFT < W:
                best = G[v * W + k + SHIFT]
                if k + SHIFT > 0:
                    best = tl.minimum(best, G[v * W + k + SHIFT - 1])
            else:
                best = G[v * W + k + SHIFT - 1]
            if k > 0:
                best = tl.minimum(best, left)  # noqa: F821
            left = _plus(c[v + k], best)
            out += (left,)
    return out


@triton.jit
def _align(at, ld, width, STEP: tl.constexpr, T: tl.constexpr, U: tl.constexpr, V: tl.constexpr, BAND: tl.constexpr):
    """Distances of V neighbouring windows, a tuple: T rows and U columns of costs, the first at ``at``."""
    W: tl.constexpr = U if BAND is None else 2 * BAND + 1
    SHIFT: tl.constexpr = 0 if BAND is None else 1
    FIRST: tl.constexpr = 0 if BAND is None else BAND
    # Cells left of a band's first column are infinite at first and, as sums of themselves, stay so. Cells right of its
    # last column are undefined, but nothing to their left depends on them.
    c = _costs(at, width, STEP, 0, W - FIRST + V - 1, V)
    G = ()
    for v in tl.static_range(V):
        for _ in tl.static_range(FIRST):
            G += (tl.full(c[0].shape, INFINITY, tl.int32),)
        total = c[v].to(tl.int32, bitcast=True)
        G += (total,)
        for k in tl.static_range(1, W - FIRST):
            total = _plus(c[v + k], total)
            G += (total,)
    # Two rows at a time: half of the copies from the new row to the old one.
    at += ld
    for _ in range((T - 1) // 2):
        upper = _costs(at, width, STEP, SHIFT - SHIFT * FIRST, W + V - 1, V)
        lower = _costs(at + ld, width, STEP, 2 * SHIFT - SHIFT * FIRST, W + V - 1, V)
        G = _advance(_advance(G, upper, W, V, BAND), lower, W, V, BAND)
        at += 2 * ld + 2 * SHIFT // V * STEP
    if (T - 1) % 2 == 1:
        last = _costs(at, width, STEP, SHIFT - SHIFT * FIRST, W + V - 1, V)
        G = _advance(G, last, W, V, BAND)
    LAST: tl.constexpr = U - 1 if BAND is None else U - T + BAND
    out = ()
    for v in tl.static_range(V):
        out += (G[v * W + LAST].to(tl.float32, bitcast=True),)
    return out


@triton.jit(do_not_specialize=_SWEEP_SCALARS)
def sweep(
    C,
    positions,
    group_columns,
    group_windows,
    group_sizes,
    out,
    table,
    zeros,
    lows,
    margin,
    ld,
    width,
    origin,
    column,
    anchor,
    anchors,
    group,
    groups,
    out_ld,
    limit,
    low,
    tile,
    T: tl.constexpr,
    U: tl.constexpr,
    V: tl.constexpr,
    BAND: tl.constexpr,
    STEP: tl.constexpr,
    LATER: tl.constexpr,
    PRUNE: tl.constexpr,
    COUNT: tl.constexpr,
    LANES: tl.constexpr,
    ANCHORS: tl.constexpr,
):
    """Align the windows ``anchor`` + a, a < anchors, with those of the groups ``group`` + g, g < groups.

    Costs C begin at ``margin``; their first row is point ``origin`` of the stream, the first column of their V planes
    of ``width`` costs is ``column``; rows are ``ld`` apart, neighbouring steps of a window ``STEP`` within a plane.
    ``positions[i]`` is the first point of window i. Group g begins at column ``group_columns[g]`` of the planes and has
    windows ``group_windows[g]`` + v, v < ``group_sizes[g]`` <= V. With LATER only windows behind the anchor count.

    Where not COUNT, distances of at most ``limit`` go to out[a * out_ld + g * V + v]. Where COUNT, those that are zero
    are counted in ``zeros``, those with bit patterns of at least ``low`` in table[pattern - low], and how many others
    there are in lows[tile].
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = lane < groups
    first = tl.load(group_windows + group + lane, mask=inside, other=0)
    size = tl.load(group_sizes + group + lane, mask=inside, other=0)
    at = tl.load(group_columns + group + lane, mask=inside, other=column) - column
    start = tl.program_id(1) * ANCHORS
    none = tl.zeros((LANES,), tl.int32)
    nothing = none
    few = none
    for a in range(start, tl.minimum(start + ANCHORS, anchors)):
        i = anchor + a
        row = tl.load(positions + i) - origin
        corner = C + margin + row * ld + at
        opposite = corner + (T - 1) * ld
        alive = inside & (size < 0)
        for v in tl.static_range(V):
            valid = v < size
            if LATER:
                valid = valid & (first + v > i)
            if PRUNE:
                # Each alignment has both corners, and rounded sums of costs never decrease: no distance is below this.
                bound = tl.load(corner + v % V * width + v // V * STEP)
                if T * U > 1:
                    bound += tl.load(opposite + (v + U - 1) % V * width + (v + U - 1) // V * STEP)
                valid = valid & (bound <= limit)
            alive = alive | valid
        if tl.max(alive.to(tl.int32), 0) > 0:
            distances = _align(corner, ld, width, STEP, T, U, V, BAND)
            for v in tl.static_range(V):
                d = distances[v]
                kept = (v < size) & (d <= limit)
                if LATER:
                    kept = kept & (first + v > i)
                if COUNT:
                    pattern = d.to(tl.int32, bitcast=True)
                    tl.atomic_add(table + (pattern - low), none + 1, mask=kept & (pattern >= low), sem="relaxed")
                    nothing += (kept & (pattern == 0)).to(tl.int32)
                    few += (kept & (pattern > 0) & (pattern < low)).to(tl.int32)
                else:
                    tl.store(out + a * out_ld + lane * V + v, d, mask=kept)
    if COUNT:
        tl.atomic_add(zeros, tl.sum(nothing, 0).to(tl.int64), sem="relaxed")
        tl.atomic_add(lows + tile, tl.sum(few, 0), sem="relaxed")
