"""Nearest rows of a bank by cosine: exact in torch, or through an index of faiss, with one interface."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from classact.data.types import FloatArray, IntArray
from classact.errors import ConfigError, DataError, MissingDependencyError
from classact.policies.config import NPROBE, parse_backend

logger = logging.getLogger(__name__)

AUTO_ROWS = 1_000_000  # up to so many rows "auto" searches with torch. Beyond, an index of faiss where it is installed.
MAX_BYTES = 256 * 2**20  # bytes of cosines that an exact search holds at a time
Ties = Literal["row", "any"]

_COLUMNS = 8192  # least bank rows of a block; fewer queries are taken at a time where they would not fit


class ExactSearch:
    """All N cosines by matrix multiplication, then the k largest.

    Args:
        bank: (N, d) float32 finite unit rows, copied.
        device: where to search.
        max_bytes: bytes of cosines held at a time. Larger problems are cut into blocks of queries and of bank rows,
            with the same result.
        ties: "row": rows of equal cosine by their numbers. "any": as ``torch.topk`` leaves them, which on a CPU depends
            on N and k alone; for results that were made so. Across blocks it is always "row".
    """

    def __init__(
        self, bank: FloatArray, *, device: str | torch.device = "cpu", max_bytes: int = MAX_BYTES, ties: Ties = "row"
    ) -> None:
        _check_bank(bank)
        # A copy, because the last bits of a product depend on how its operands are aligned in memory.
        self.bank = torch.tensor(bank, dtype=torch.float32, device=device)
        self.max_bytes, self.ties = max_bytes, ties

    @torch.inference_mode()
    def search(self, queries: FloatArray, k: int, without: IntArray | None = None) -> tuple[IntArray, FloatArray]:
        """As :data:`Search`, without bank rows [from, to) of (B, 2) ``without``: a query's own episode.

        Fewer than k rows left are a ConfigError.
        """
        rows, width = self.bank.shape
        _check_queries(queries, k, rows, width)
        if without is not None:
            left = rows - int((without[:, 1] - without[:, 0]).max(initial=0))
            if left < k:
                raise ConfigError(
                    f"{k} neighbours asked of {left} rows: of {rows}, {rows - left} may not be found. Ask for fewer."
                )
        z = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(self.bank.device)
        cells = self.max_bytes // 4
        at_once = max(1, cells // min(rows, _COLUMNS))
        found_rows, found_cosine = [], []
        with _full_precision():
            for start in range(0, max(len(z), 1), at_once):
                own = None if without is None else without[start : start + at_once]
                found, cosine = self._pass(z[start : start + at_once], k, cells, own)
                found_rows.append(found.cpu().numpy())
                found_cosine.append(cosine.cpu().numpy())
        return np.concatenate(found_rows), np.concatenate(found_cosine)

    def _pass(self, z: Tensor, k: int, cells: int, without: IntArray | None) -> tuple[Tensor, Tensor]:
        rows = len(self.bank)
        block = min(rows, max(1, cells // max(len(z), 1)))
        best: tuple[Tensor, Tensor] | None = None
        for start in range(0, rows, block):
            cosine = _products(z, self.bank[start : start + block])
            if without is not None:
                _hide(cosine, start, without)
            value, row = _largest(cosine, min(k, cosine.shape[1]), self.ties if block == rows else "row")
            row = row + start
            if best is not None:
                # Rows of earlier blocks come first and the sort is stable: ties stay in row order.
                value, row = torch.cat([best[1], value], dim=1), torch.cat([best[0], row], dim=1)
                value, order = torch.sort(value, dim=1, descending=True, stable=True)
                value, row = value[:, :k], row.gather(1, order[:, :k])
            best = row, value
        assert best is not None
        return best


def _products(z: Tensor, bank: Tensor) -> Tensor:
    # For one query the general product is several times slower on a CPU, with the same bits.
    return torch.mv(bank, z[0])[None] if len(z) == 1 else z @ bank.T


def _largest(cosine: Tensor, k: int, ties: Ties) -> tuple[Tensor, Tensor]:
    """The k largest of each row of (B, n) and their columns, ties as given."""
    columns = cosine.shape[1]
    if ties == "any":
        value, row = torch.topk(cosine, k, dim=1)
        return value, row
    # One more tells whether the last place is tied; if not, only those found need sorting.
    value, row = torch.topk(cosine, min(k + 1, columns), dim=1)
    if columns > k:
        edge = value[:, k]
        for query in torch.nonzero(edge == value[:, k - 1]).flatten().tolist():
            above = int((value[query] > edge[query]).sum())
            row[query, above:k] = torch.nonzero(cosine[query] == edge[query]).flatten()[: k - above]
        value, row = value[:, :k], row[:, :k]
    row, order = torch.sort(row, dim=1)
    value, order = torch.sort(value.gather(1, order), dim=1, descending=True, stable=True)
    return value, row.gather(1, order)


def _hide(cosine: Tensor, start: int, without: IntArray) -> None:
    """Set cosines of excluded rows to minus infinity; queries of one episode are consecutive."""
    cuts = np.flatnonzero((np.diff(without, axis=0) != 0).any(axis=1)) + 1
    for first, last in zip([0, *cuts], [*cuts, len(without)], strict=True):
        if first == last:
            continue
        low, high = (int(bound) - start for bound in without[first])
        cosine[first:last, max(low, 0) : max(high, 0)] = -torch.inf


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    # Training may have allowed TF32 or bfloat16 products, whose error is larger than the temperature of retrieval.
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class FaissSearch:
    """An index of faiss over inner products, on the CPU.

    Approximate indexes see a part of the bank and may miss neighbours; quantised ones report approximate cosines. Where
    the lists of a query hold fewer than k rows, more are looked at. Up to rounding, a query's result does not depend on
    the others of its batch.

    Args:
        bank: (N, d) float32 finite unit rows.
        factory: index as faiss names it: "Flat" is exact, "IVF1024,Flat" looks at ``nprobe`` of 1,024 lists.
        nprobe: lists looked at by an IVF index.

    Raises:
        MissingDependencyError: faiss is not installed.
        ConfigError: faiss does not know the index or cannot train it on this bank.
    """

    def __init__(self, bank: FloatArray, *, factory: str = "Flat", nprobe: int = NPROBE) -> None:
        faiss = _faiss()
        _check_bank(bank)
        self.rows, self.width = bank.shape
        self.nprobe = nprobe
        contiguous = np.ascontiguousarray(bank, np.float32)
        self.index = _make_index(factory, self.rows, self.width)
        try:
            self._lists = faiss.try_extract_index_ivf(self.index)
            if self._lists is not None:
                self._lists.cp.seed = 0  # of the clustering that it is trained with
            if not self.index.is_trained:
                self.index.train(contiguous)
            self.index.add(contiguous)
        except RuntimeError as error:
            raise _no_index(factory, self.rows, self.width, error) from None

    def search(self, queries: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
        """As :data:`Search`, of the rows that the index looks at."""
        _check_queries(queries, k, self.rows, self.width)
        z = np.ascontiguousarray(queries, np.float32)
        rows, cosine = np.empty((len(z), k), np.int64), np.empty((len(z), k), np.float32)
        # Queries with equal needs are searched together: (numbers of the queries, rows asked for, lists looked at).
        todo = [(np.arange(len(z)), min(k + 1, self.rows), self.nprobe)] if len(z) else []
        while todo:
            group, asked, lists = todo.pop()
            if self._lists is not None:
                self._lists.nprobe = min(lists, self._lists.nlist)
            value, row = self.index.search(z[group], asked)
            all_lists = self._lists is None or lists >= self._lists.nlist
            short = (row[:, :k] < 0).any(axis=1) & (not all_lists)
            # The order of rows that tie for the last place is known once a smaller cosine was seen.
            contested = (row[:, -1] >= 0) & (value[:, -1] == value[:, k - 1]) & (asked < self.rows)
            done = ~(short | contested)
            order = np.lexsort((row[done], -value[done]), axis=1)[:, :k]
            rows[group[done]] = np.take_along_axis(row[done], order, axis=1)
            cosine[group[done]] = np.take_along_axis(value[done], order, axis=1)
            for which, more, further in (
                (short & contested, 2 * asked, 2 * lists),
                (short & ~contested, asked, 2 * lists),
                (contested & ~short, 2 * asked, lists),
            ):
                if which.any():
                    todo.append((group[which], min(more, self.rows), further))
        if (rows < 0).any():
            raise ConfigError(
                f"the index found fewer than k = {k} of {self.rows} rows. Use 'Flat' or an IVF index, or lower k."
            )
        return rows, cosine


Search = ExactSearch | FaissSearch
"""Nearest rows of a bank of N unit rows: ``search(queries, k)`` gives, for (B, d) float32 unit rows, (B, k) int64 row
numbers and (B, k) float32 cosines, nearest first, equal cosines by row number.

Queries of another width, or not finite, are a DataError, k < 1 or k > N a ConfigError."""


def make_search(
    bank: FloatArray, backend: str = "auto", *, device: str | torch.device = "cpu", ties: Ties = "row"
) -> Search:
    """A search over a bank (N, d) of float32 unit rows.

    Args:
        backend: "torch", exact; "faiss", its exact index; "faiss:FACTORY", another one, such as "faiss:IVF1024,Flat",
            or with :data:`~classact.policies.config.NPROBE` "faiss:IVF1024,Flat@64"; "auto": torch on a GPU and up to
            ``AUTO_ROWS`` rows, beyond that the exact index of faiss if installed.
        device, ties: of :class:`ExactSearch`; faiss searches on the CPU whatever the device.

    Raises:
        ConfigError: an unknown backend, or settings that do not suit the bank.
        MissingDependencyError: faiss was requested and is not installed.
    """
    name, factory, nprobe = parse_backend(backend)
    if name == "auto" and len(bank) > AUTO_ROWS and torch.device(device).type == "cpu":
        try:
            _faiss()
            name = "faiss"
        except MissingDependencyError as error:
            logger.warning(
                "the bank has %s rows, beyond %s; it is searched with torch, for %s",
                f"{len(bank):,}",
                f"{AUTO_ROWS:,}",
                error,
            )
    if name == "faiss":
        return FaissSearch(bank, factory=factory, nprobe=nprobe)
    return ExactSearch(bank, device=device, ties=ties)


def check_search(backend: str, rows: int, width: int) -> None:
    """Refuse early what :func:`make_search` would refuse of a bank of (``rows``, ``width``)."""
    name, factory, _ = parse_backend(backend)
    if name == "faiss":
        lists = _faiss().try_extract_index_ivf(_make_index(factory, rows, width))
        if lists is not None and lists.nlist > rows:
            raise _no_index(factory, rows, width, f"{lists.nlist} lists")


def _make_index(factory: str, rows: int, width: int) -> Any:
    faiss = _faiss()
    try:
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _no_index(factory, rows, width, error) from None


def _no_index(factory: str, rows: int, width: int, error: Any) -> ConfigError:
    reason = str(error).strip().splitlines()[-1]
    return ConfigError(
        f"faiss cannot make the index {factory!r} of {rows} rows of {width} ({reason}). Use 'Flat', or an IVF index of "
        f"far fewer lists than rows."
    )


def _faiss() -> Any:
    try:
        with warnings.catch_warnings():  # its wrapper causes deprecation warnings under Python 3.12
            warnings.simplefilter("ignore", DeprecationWarning)
            import faiss
    except ImportError as error:
        raise MissingDependencyError(
            f"searching with faiss needs the package faiss-cpu ({error}). Install it with: pip install "
            f"'classact[faiss]'; or use search 'torch'."
        ) from None
    return faiss


def _check_bank(bank: FloatArray) -> None:
    if bank.ndim != 2 or 0 in bank.shape:
        raise DataError(f"expected a bank of shape (N, d) with N, d >= 1, got {bank.shape}.")
    if not (finite := np.isfinite(bank.sum(axis=1))).all():
        raise DataError(
            f"{int((~finite).sum())} of the bank's {len(bank)} latents are NaN or infinite, the first in row "
            f"{int(np.argmin(finite))}. Check the encoder's weights and the demonstrations."
        )


def _check_queries(queries: FloatArray, k: int, rows: int, width: int) -> None:
    if queries.ndim != 2 or queries.shape[1] != width:
        raise DataError(f"expected queries of shape (B, {width}) as the bank's rows, got {queries.shape}.")
    if not 1 <= k <= rows:
        raise ConfigError(f"k = {k} neighbours asked of a bank of {rows} rows. Expected 1 <= k <= {rows}.")
    if not (finite := np.isfinite(queries).all(axis=1)).all():
        raise DataError(
            f"{int((~finite).sum())} of {len(queries)} latents of observations are NaN or infinite, the first in row "
            f"{int(np.argmin(finite))}. Check the encoder's weights and what the robot observes."
        )
