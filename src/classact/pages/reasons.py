"""The reasons behind an action: a query frame, the neighbours it was averaged from, their weights and chunks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.types import ImageArray
from classact.pages.table import Row

MOST_NEIGHBORS = 8  # shown per query; the share of weight they hold is stated
WORLD = 512.0


def png_uri(image: ImageArray) -> str:
    """(H, W, 3) uint8 RGB as a ``data:`` address."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def world_size(arrays: Mapping[str, NDArray[Any]]) -> float:
    """Side of the square world that chunks are given in: the array ``world`` where present, else 512."""
    return float(np.ravel(arrays["world"])[0]) if "world" in arrays else WORLD


def chunk_path(points: NDArray[Any]) -> Row | None:
    """A (T, 2) chunk in world coordinates as SVG; None for action spaces that are not points of the plane."""
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        return None
    start, end = ((round(float(x), 1), round(float(y), 1)) for x, y in (points[0], points[-1]))
    return {"points": " ".join(f"{x:.1f},{y:.1f}" for x, y in points), "start": start, "end": end}


def shares(weights: NDArray[Any]) -> NDArray[np.float64]:
    """(K,) weights as parts of their sum."""
    values = np.asarray(weights, np.float64)
    return np.asarray(values / values.sum())


def reasons(
    arrays: Mapping[str, NDArray[Any]], heads: Mapping[str, NDArray[Any]] | None = None, numbers: Sequence[int] = ()
) -> list[Row]:
    """All queries of analysis/neighbors.safetensors with their neighbours, heaviest first, ready to draw.

    ``held`` is the shown neighbours' share of the weight; a neighbour's ``share`` is its part of the total weight, and
    ``bar`` that part relative to the heaviest one's. ``heads`` are chunks (Q, T, D) by name: each is drawn, with its
    mean distance from retrieval's chunk (``apart``) and from the nearest of the demonstrated ones (``nearest``), and
    that of retrieval's chunk (``usual``), in units of actions over the steps that both have. ``numbers`` are those of
    the run's demonstrations in the data set, where they are not 0, 1, ...
    """
    return [_reason(arrays, heads or {}, numbers, q) for q in range(len(arrays["query_images"]))]


CURVES = (100.0, 42.0)
"""Width and height of the drawing of a chunk whose actions are no points of the plane."""


def curves(chunk: NDArray[Any], low: NDArray[Any], high: NDArray[Any]) -> list[str]:
    """Each dimension of a chunk (T, D) over its steps, as the points of a line; ``low`` and ``high`` (D,) fill the
    height.
    """
    width, height = CURVES
    span = np.where(high > low, high - low, 1.0)
    y = height - 2 - (height - 4) * (chunk.astype(np.float64) - low) / span
    x = np.linspace(2, width - 2, len(chunk)) if len(chunk) > 1 else np.array([width / 2])
    return [" ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, column, strict=True)) for column in y.T]


def _distance(chunk: NDArray[Any], others: NDArray[Any]) -> NDArray[np.float64]:
    """(...,) mean distance of a chunk (T, D) from others (..., T', D)."""
    steps = min(len(chunk), others.shape[-2])
    difference = others[..., :steps, :].astype(np.float64) - chunk[:steps]
    return np.asarray(np.linalg.norm(difference, axis=-1).mean(axis=-1))


def _head(name: str, chunk: NDArray[Any], retrieved: NDArray[Any], demonstrated: NDArray[Any]) -> Row:
    return {
        "name": name,
        "apart": float(_distance(chunk, retrieved)),
        "nearest": float(_distance(chunk, demonstrated).min()),
        "usual": float(_distance(retrieved, demonstrated).min()),
    }


def _reason(
    arrays: Mapping[str, NDArray[Any]], heads: Mapping[str, NDArray[Any]], numbers: Sequence[int], q: int
) -> Row:
    def number(episode: Any) -> int:
        return numbers[int(episode)] if int(episode) < len(numbers) else int(episode)

    part = shares(arrays["weights"][q])
    recorded = "done" in arrays
    known = recorded and arrays["done"].shape[1] > 0
    planned = arrays["query_chunk"][q]
    seen = np.concatenate([planned, *arrays["neighbor_chunks"][q], *([arrays["done"][q]] if recorded else [])])
    low, high = seen.min(axis=0), seen.max(axis=0)

    def drawn(chunk: NDArray[Any]) -> Row:
        # Only a simulator says where in the picture a point is.
        if recorded:
            return {"chunk": None, "curves": curves(chunk, low, high)}
        return {"chunk": chunk_path(chunk), "curves": []}

    order = np.argsort(-part, kind="stable")[:MOST_NEIGHBORS]
    neighbors = [
        {
            "image": png_uri(arrays["neighbor_images"][q, k]),
            "share": float(part[k]),
            "bar": float(part[k] / part.max()),
            "cosine": float(arrays["cosine"][q, k]),
            "episode": number(arrays["episode"][q, k]),
            "step": int(arrays["step"][q, k]),
            **drawn(arrays["neighbor_chunks"][q, k]),
        }
        for k in order
    ]
    return {
        "image": png_uri(arrays["query_images"][q]),
        "seed": number(arrays["query_seed"][q]) if recorded else int(arrays["query_seed"][q]),
        "step": int(arrays["query_step"][q]),
        **drawn(planned),
        "done": curves(arrays["done"][q], low, high) if known else [],
        "away": float(_distance(planned, arrays["done"][q])) if known else None,
        "neighbors": neighbors,
        "visits": int(arrays["visits"][q]),
        "heads": [
            drawn(chunks[q]) | _head(name, chunks[q], planned, arrays["neighbor_chunks"][q])
            for name, chunks in heads.items()
        ],
        "retrieved": len(part),
        "held": float(part[order].sum()),
    }
