"""DTW of sixteen window pairs at once, written as vector instructions.

Numba's loop vectoriser keeps the row of the dynamic programme in memory; these functions keep it in registers: they
emit LLVM code on vectors of :data:`LANES` float32 values, one pair per lane, unrolled over the row. LLVM splits the
vectors for narrower registers. No fast-math flags: sums keep their order, infinities stay infinite.

The recurrence of reference.py, with the step distances c[p, q] read from a ring of rows: row[q] = c[p, q] + min(row[q]
of p - 1, row[q - 1] of p - 1, row[q - 1]).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba as nb
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

from classact.similarity.threads import parallel

LANES = 16  # pairs per vector: one AVX-512 register
MAX_UNROLLED = 24  # longest row that is kept in registers; longer ones are kept in memory
_F32 = ir.FloatType()
_I64 = ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)


_DIGEST = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


class _Cache(FunctionCache):  # type: ignore[misc]
    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), _DIGEST)


def kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function that uses these instructions, for all cores, and cache the machine code on disk.

    Numba's own cache checks the file of the function alone: it would miss a change here.
    """
    compiled = nb.njit(parallel=True)(function)
    compiled._cache = _Cache(function)
    return parallel(compiled)


def unrolled(columns: int, band: int | None) -> tuple[tuple[int, ...], int | None]:
    """Arguments ``width`` and ``skew`` of :func:`align` for windows of ``columns`` steps.

    Their types, not their values, select the code: a tuple of as many zeros as the unrolled row is long (empty: row in
    memory), and None for rows over all columns or 0 for rows along the diagonal, as wide as the band.
    """
    if band is None or 2 * band + 1 >= columns:
        if columns <= MAX_UNROLLED and (band is None or band >= columns - 1):
            return (0,) * columns, None
        return (), None
    return ((0,) * (2 * band + 1), 0) if 2 * band + 1 <= MAX_UNROLLED else ((), None)


def _constant(value: float) -> Any:
    return ir.Constant(_VECTOR, [ir.Constant(_F32, value)] * LANES)


def _load(b: Any, pointer: Any) -> Any:
    vector = b.load(b.bitcast(pointer, _VECTOR.as_pointer()))
    vector.align = 4
    return vector


def _store(b: Any, vector: Any, pointer: Any) -> None:
    b.store(vector, b.bitcast(pointer, _VECTOR.as_pointer())).align = 4


def _minimum(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered("<", x, y), x, y)


def _spread(b: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    one = b.insert_element(undefined, scalar, ir.Constant(ir.IntType(32), 0))
    return b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))


def _at_most(b: Any, vector: Any, limit: Any) -> Any:
    # (lanes <= limit) as the low bits of an integer.
    return b.zext(b.bitcast(b.fcmp_ordered("<=", vector, _spread(b, limit)), ir.IntType(LANES)), _I64)


def _i64(value: int) -> Any:
    return ir.Constant(_I64, value)


def _data(context: Any, b: Any, array_type: Any, value: Any) -> Any:
    return context.make_array(array_type)(context, b, value).data


def _next_row(b: Any, row: Any, rows: Any) -> Any:
    following = b.add(row, _i64(1))
    return b.select(b.icmp_signed("==", following, rows), _i64(0), following)


@contextmanager
def _loop(b: Any, name: str, end: Any, *values: Any) -> Iterator[tuple[Any, list[Any], list[Any]]]:
    """Emit a loop over 0 <= p < ``end``, run at least once.

    The body gets p, the ``values`` of this turn, and a list to which it appends those of the next.
    """
    entry, loop, done = b.block, b.append_basic_block(name), b.append_basic_block(f"{name}.end")
    b.branch(loop)
    b.position_at_end(loop)
    p, state = b.phi(_I64), [b.phi(value.type) for value in values]
    following: list[Any] = []
    yield p, state, following
    turned, more = b.block, b.add(p, _i64(1))
    for phi, first, then in zip([p, *state], [_i64(0), *values], [more, *following], strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(then, turned)
    b.cbranch(b.icmp_signed("<", more, end), loop, done)
    b.position_at_end(done)


def _rows_in_registers(
    b: Any, n: int, skewed: bool, read: Any, first: Any, rows: Any, T: Any, start: Any = None
) -> Any:
    """Loop over T rows with the row in registers; returns the last row.

    ``start``: the row before them and the value left above their first cell; None for the first rows.
    """
    inf = _constant(float("inf"))
    before, corner = start or ([inf] * n, _constant(0.0))
    # The origin is left above the first cell: 0 for the first row, infinite later.
    with _loop(b, "row", T, first, *before, corner) as (p, (ring, *row, origin), following):
        new: list[Any] = []
        for q in range(n):
            if skewed:  # index q - p + band: the cell above is one to the right, the one left above in place
                candidates = [row[q], *row[q + 1 : q + 2], *([origin] if q == n // 2 else [])]
            else:
                candidates = [row[q - 1] if q else origin, row[q]]
            best = candidates[0]
            for other in [*candidates[1:], *new[-1:]]:
                best = _minimum(b, best, other)
            new.append(b.fadd(read(b, ring, p, q), best))
        following += [_next_row(b, ring, rows), *new, inf]
    return new


def _row_in_memory(b: Any, read: Any, first: Any, rows: Any, T: Any, columns: Any, band: Any, scratch: Any) -> Any:
    """The same with the row in ``scratch``, for any number of columns and any band; returns the last cell."""
    inf = _constant(float("inf"))

    def cell(q: Any) -> Any:
        return b.gep(scratch, [b.mul(q, _i64(LANES))])

    with _loop(b, "fill", columns) as (q, _, _):
        _store(b, inf, cell(q))
    with _loop(b, "row", T, first) as (p, (ring,), following):
        row_block, cell_block, row_end = b.block, b.append_basic_block("cell"), b.append_basic_block("cells.end")
        low = b.sub(p, band)
        starts_left = b.icmp_signed("<=", low, _i64(0))
        low = b.select(starts_left, _i64(0), low)
        high = b.add(b.add(p, band), _i64(1))
        high = b.select(b.icmp_signed("<", high, columns), high, columns)
        # Left above the first cell of a row: the origin for p = 0, nothing at the border, else a cell of the last row.
        before = _load(b, cell(b.select(starts_left, _i64(0), b.sub(low, _i64(1)))))
        before = b.select(starts_left, inf, before)
        before = b.select(b.icmp_signed("==", p, _i64(0)), _constant(0.0), before)
        b.cbranch(b.icmp_signed("<", low, high), cell_block, row_end)  # a narrow band leaves some rows empty
        b.position_at_end(cell_block)
        q, left, diagonal = b.phi(_I64), b.phi(_VECTOR), b.phi(_VECTOR)
        above = _load(b, cell(q))
        value = b.fadd(read(b, ring, p, q), _minimum(b, _minimum(b, diagonal, above), left))
        _store(b, value, cell(q))
        more = b.add(q, _i64(1))
        for phi, start, then in ((q, low, more), (left, inf, value), (diagonal, before, above)):
            phi.add_incoming(start, row_block)
            phi.add_incoming(then, cell_block)
        b.cbranch(b.icmp_signed("<", more, high), cell_block, row_end)
        b.position_at_end(row_end)
        following.append(_next_row(b, ring, rows))
    return _load(b, cell(b.sub(columns, _i64(1))))


@intrinsic  # type: ignore[untyped-decorator]
def step_distances(
    typing: Any, x: Any, values: Any, start: Any, count: Any, squared: Any, out: Any, row: Any, at: Any
) -> Any:
    """Distances of one point to neighbouring points, dimensions added in order.

    ``x`` (D,) and ``values`` (D, P) are contiguous float32. The points [start, start + count), ``count`` a multiple of
    :data:`LANES`, have their (squared) Euclidean distances written to ``out[row, at : at + count]``, (R, S) float32.
    """
    position = types.intp
    signature = types.void(x, values, position, position, types.boolean, out, position, position)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        x, values, start, count, squared, out, row, at = args
        kinds = signature.args
        points = context.make_array(kinds[1])(context, b, values)
        dim, stride = b.extract_value(points.shape, 0), b.extract_value(points.shape, 1)
        source = b.gep(points.data, [start])
        target = context.make_array(kinds[5])(context, b, out)
        sink = b.gep(target.data, [b.add(b.mul(row, b.extract_value(target.shape, 1)), at)])
        mine = _data(context, b, kinds[0], x)
        square_root = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(_VECTOR, [_VECTOR]), f"llvm.sqrt.v{LANES}f32"
        )

        def measure(begin: Any, end: Any, unroll: int) -> Any:
            """Loop over points in steps of ``unroll`` vectors while they fit; returns the end."""
            entry, names = b.block, ("test", "points", "rooted", "stored", "measured")
            test, block, rooted, stored, done = (b.append_basic_block(name) for name in names)
            b.branch(test)
            b.position_at_end(test)
            v = b.phi(_I64)
            v.add_incoming(begin, entry)
            reached = b.add(v, _i64(unroll * LANES))
            b.cbranch(b.icmp_signed("<=", reached, end), block, done)
            b.position_at_end(block)
            here = b.gep(source, [v])
            with _loop(b, "dimension", dim, *[_constant(0.0)] * unroll) as (d, totals, added):
                coordinate = _spread(b, b.load(b.gep(mine, [d])))
                line = b.gep(here, [b.mul(d, stride)])
                for k, total in enumerate(totals):
                    e = b.fsub(coordinate, _load(b, b.gep(line, [_i64(k * LANES)])))
                    added.append(b.fadd(total, b.fmul(e, e)))
            summed = b.block
            b.cbranch(squared, stored, rooted)
            b.position_at_end(rooted)
            roots = [b.call(square_root, [value]) for value in added]
            b.branch(stored)
            b.position_at_end(stored)
            distances = [b.phi(_VECTOR) for _ in range(unroll)]
            for distance, value, root in zip(distances, added, roots, strict=True):
                distance.add_incoming(value, summed)
                distance.add_incoming(root, rooted)
            for k, distance in enumerate(distances):
                _store(b, distance, b.gep(sink, [b.add(v, _i64(k * LANES))]))
            v.add_incoming(reached, stored)
            b.branch(test)
            b.position_at_end(done)
            return v

        measure(measure(_i64(0), count, 4), count, 1)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def align(
    typing: Any,
    width: Any,
    skew: Any,
    steps: Any,
    first: Any,
    column: Any,
    step: Any,
    T: Any,
    columns: Any,
    band: Any,
    scratch: Any,
    limit: Any,
    out: Any,
) -> Any:
    """DTW of sixteen pairs; returns an int64 in which bit v is set where the distance of lane v is at most ``limit``.

    Args:
        width, skew: from :func:`unrolled`.
        steps: (R, S) float32: ring of rows of step distances; row p of these pairs is (first + p) mod R, and lane v of
            its column q lies at [column + q * step + v].
        T, columns: rows and columns of the dynamic programme: lengths of the two windows.
        band: Sakoe-Chiba band; at least ``T + columns`` for none.
        scratch: (columns, LANES) float32, for rows in memory.
        limit: float32.
        out: (LANES,) float32: receives the distances.
    """
    position = types.intp
    signature = types.int64(
        width, skew, steps, position, position, position, position, position, position, scratch, types.float32, out
    )

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, _, ring, first, column, step, T, columns, band, memory, limit, target = args
        kinds = signature.args
        rows = context.make_array(kinds[2])(context, b, ring)
        shape = b.extract_value(rows.shape, 0), b.extract_value(rows.shape, 1)
        base = b.gep(rows.data, [column])
        skewed = not isinstance(kinds[1], types.NoneType)
        n = len(kinds[0])

        def read(b: Any, row: Any, p: Any, q: Any) -> Any:
            at = q if not isinstance(q, int) else _i64(q)
            if skewed:
                at = b.add(p, b.sub(at, _i64(n // 2)))
            return _load(b, b.gep(base, [b.add(b.mul(row, shape[1]), b.mul(at, step))]))

        if n:
            last = _rows_in_registers(b, n, skewed, read, first, shape[0], T)
            distance = last[n // 2] if skewed else last[-1]
        else:
            scratch_data = _data(context, b, kinds[9], memory)
            distance = _row_in_memory(b, read, first, shape[0], T, columns, band, scratch_data)
        _store(b, distance, _data(context, b, kinds[11], target))
        return _at_most(b, distance, limit)

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def bounded(typing: Any, minima: Any, first: Any, column: Any, T: Any, limit: Any) -> Any:
    """An int64 in which bit v is set where the T row minima of lane v add up to at most ``limit`` (float32).

    ``minima`` (R, S) float32 is a ring of rows: row p of these pairs is (first + p) mod R, lane v at [column + v].
    """
    position = types.intp
    signature = types.int64(minima, position, position, position, types.float32)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        ring, first, column, T, limit = args
        rows = context.make_array(signature.args[0])(context, b, ring)
        count, stride = b.extract_value(rows.shape, 0), b.extract_value(rows.shape, 1)
        base = b.gep(rows.data, [column])
        with _loop(b, "add", T, first, _constant(0.0)) as (_, (row, total), following):
            added = b.fadd(total, _load(b, b.gep(base, [b.mul(row, stride)])))
            following += [_next_row(b, row, count), added]
        return _at_most(b, added, limit)

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def lowest(typing: Any, mask: Any) -> Any:
    """Index of the lowest set bit of a mask that is not 0."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def advance(
    typing: Any, width: Any, steps: Any, column: Any, step: Any, begin: Any, end: Any, row: Any, out: Any
) -> Any:
    """Some rows of :func:`align` without a band, so that hopeless pairs can be given up in between.

    Args:
        width: from :func:`unrolled`, not empty.
        steps: (R, S) float32: row p of the step distances is ``steps[p]``; see :func:`align`.
        begin, end: rows begin <= p < end.
        row: (len(width), LANES) float32: the accumulated costs, read where ``begin`` is above 0, and written.
        out: (LANES,) float32: receives the last accumulated cost at the last row, and before it the least of the row, a
            lower bound.
    """
    position = types.intp
    signature = types.void(width, steps, position, position, position, position, row, out)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        _, ring, column, step, begin, end, memory, target = args
        kinds = signature.args
        n = len(kinds[0])
        rows = context.make_array(kinds[1])(context, b, ring)
        count, stride = b.extract_value(rows.shape, 0), b.extract_value(rows.shape, 1)
        base = b.gep(rows.data, [column])
        saved = _data(context, b, kinds[6], memory)
        inf, first = _constant(float("inf")), b.icmp_signed("==", begin, _i64(0))

        def read(b: Any, row: Any, _: Any, q: int) -> Any:
            return _load(b, b.gep(base, [b.add(b.mul(row, stride), b.mul(_i64(q), step))]))

        start = [b.select(first, inf, _load(b, b.gep(saved, [_i64(q * LANES)]))) for q in range(n)]
        corner = b.select(first, _constant(0.0), inf)
        new = _rows_in_registers(b, n, False, read, begin, count, b.sub(end, begin), (start, corner))
        least = new[0]
        for q, cell in enumerate(new):
            _store(b, cell, b.gep(saved, [_i64(q * LANES)]))
            least = _minimum(b, least, cell)
        finished = b.icmp_signed("==", end, count)
        _store(b, b.select(finished, new[-1], least), _data(context, b, kinds[7], target))
        return context.get_dummy_value()

    return signature, codegen
