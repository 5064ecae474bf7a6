"""The reasons behind an action: a query frame, the neighbours it was averaged from, their weights and chunks."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.types import ImageArray

MOST_NEIGHBORS = 8  # shown per query; the share of weight they hold is stated
WORLD = 512.0


@dataclass(frozen=True)
class Chunk:
    """A planned path in world coordinates, as SVG: polyline points, first and last point."""

    points: str
    start: tuple[float, float]
    end: tuple[float, float]


@dataclass(frozen=True)
class Neighbor:
    """A retrieved step: ``share`` of the whole weight, ``bar`` relative to the heaviest neighbour of the query."""

    image: str
    share: float
    bar: float
    cosine: float
    episode: int
    step: int
    chunk: Chunk | None


@dataclass(frozen=True)
class Reason:
    """One query with its neighbours, heaviest first; ``held`` is the share of weight of those shown."""

    image: str
    seed: int
    step: int
    chunk: Chunk | None
    neighbors: list[Neighbor]
    retrieved: int
    held: float


def png_uri(image: ImageArray) -> str:
    """(H, W, 3) uint8 RGB as a ``data:`` address."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def world_size(arrays: Mapping[str, NDArray[Any]]) -> float:
    """Side of the square world that chunks are given in: the array ``world`` where present, else 512."""
    return float(np.ravel(arrays["world"])[0]) if "world" in arrays else WORLD


def chunk_path(points: NDArray[Any]) -> Chunk | None:
    """A (T, 2) chunk as SVG; None for action spaces that are not points of the plane."""
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        return None
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    first, last = ((round(float(x), 1), round(float(y), 1)) for x, y in (points[0], points[-1]))
    return Chunk(text, first, last)


def shares(weights: NDArray[Any]) -> NDArray[np.float64]:
    """(K,) weights as parts of their sum."""
    values = np.asarray(weights, np.float64)
    return np.asarray(values / values.sum())


def reasons(arrays: Mapping[str, NDArray[Any]]) -> list[Reason]:
    """All queries of analysis/neighbors.safetensors, ready to draw."""
    return [_reason(arrays, q) for q in range(len(arrays["query_images"]))]


def _reason(arrays: Mapping[str, NDArray[Any]], q: int) -> Reason:
    part = shares(arrays["weights"][q])
    order = np.argsort(-part, kind="stable")[:MOST_NEIGHBORS]
    return Reason(
        image=png_uri(arrays["query_images"][q]),
        seed=int(arrays["query_seed"][q]),
        step=int(arrays["query_step"][q]),
        chunk=chunk_path(arrays["query_chunk"][q]),
        neighbors=[
            Neighbor(
                image=png_uri(arrays["neighbor_images"][q, k]),
                share=float(part[k]),
                bar=float(part[k] / part.max()),
                cosine=float(arrays["cosine"][q, k]),
                episode=int(arrays["episode"][q, k]),
                step=int(arrays["step"][q, k]),
                chunk=chunk_path(arrays["neighbor_chunks"][q, k]),
            )
            for k in order
        ],
        retrieved=len(part),
        held=float(part[order].sum()),
    )
