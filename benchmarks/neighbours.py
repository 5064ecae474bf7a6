"""What an encoder takes for alike: nearest neighbours and latent maps of CLASS and of behaviour cloning on Push-T.

The paper's figures 13 to 15, by numbers and as a picture, from runs of ``pusht_policies.py`` with random colours. Of
demonstrated timesteps the 8 nearest of other demonstrations are looked up, and measured: how many of them are positives
(their actions as similar by DTW as training counts), how far apart their mean colours are, where 1 is what random
timesteps have, and how many of the 8 nearest are of the same demonstration where that one is not left out.

    uv run python benchmarks/neighbours.py --data pusht_human.zarr --runs runs/pusht-policies
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from classact.data.readers import read_demonstrations
from classact.data.types import Demonstrations, FloatArray, ImageArray, IntArray
from classact.pages.style import PALETTE
from classact.policies import RetrievalPolicy
from classact.run.frames import prepare_frames
from classact.run.tsne import latent_map
from classact.similarity import ActionSimilarity
from classact.utils.progress import tell
from classact.utils.storage import atomic_path
from common import RESULTS, command, save
from pusht_policies import COLUMNS, Row, settings
from pusht_policies import Flags as Policies

METHODS = {"class": "CLASS", "scratch": "behaviour cloning", "untrained": "an untrained encoder"}
DRAWN = ("class", "scratch")
BANKS = {
    "class": "class-rand-seed0/policy",
    "scratch": "untrained-rand-seed0/heads/mlp-scratch/retrieval",
    "untrained": "untrained-rand-seed0/policy",
}
"""In the folder of the runs."""

K = 8
"""Neighbours, as in the paper's figures."""

ROWS, TILE, GAP, TITLE, MAP = 4, 96, 4, 28, 480
"""Queries of the picture; pixels."""

EPISODES, PERPLEXITY = 20, 100.0
"""Of the maps, as in the paper's figure 13."""


@dataclass
class Flags:
    """What an encoder takes for alike.

    Attributes:
        data: the human demonstrations.
        runs: folder of the runs of pusht_policies.py.
        json: where the numbers go.
        picture: where the picture goes.
        queries: timesteps of other demonstrations than their neighbours'.
    """

    data: str
    runs: Path = Path("runs/pusht-policies")
    json: Path = RESULTS / "neighbours.json"
    picture: Path = Path("docs/neighbours.png")
    queries: int = 2000


def main(flags: Flags) -> None:
    """Measure all encoders and draw two of them."""
    made = settings(Policies(flags.data, flags.runs), Row("class", "retrieval", "rand", 0))
    encoder = made.pretrain.encoder
    data = prepare_frames(read_demonstrations(flags.data), encoder.cameras, encoder.image_size, made.frames)
    images = np.asarray(data.images[encoder.cameras[0]])
    similarity = ActionSimilarity(data, made.pretrain.similarity)
    queries = np.sort(np.random.default_rng(0).choice(data.num_steps, flags.queries, replace=False))
    colours = images.reshape(len(images), -1, 3).mean(axis=1, dtype=np.float64)
    banks = {name: RetrievalPolicy.load(flags.runs / path).bank for name, path in BANKS.items()}
    rows = {}
    for name, bank in banks.items():
        rows[name] = measures(bank, data, queries, similarity, colours)
        tell(f"{METHODS[name]}: {rows[name]}")
    rows["random"] = random_measures(data, queries, similarity)
    save(flags.json, {"shift": COLUMNS["rand"][1], "k": K, "queries": flags.queries, "rows": rows})
    shown = queries[np.linspace(0, len(queries) - 1, ROWS + 2).astype(int)[1:-1]]
    with atomic_path(flags.picture) as path:
        picture({name: banks[name] for name in DRAWN}, data, images, shown).save(path, format="PNG")


def nearest(bank: FloatArray, queries: IntArray, episode: IntArray, *, own: bool = False) -> IntArray:
    """(Q, K) nearest rows by cosine, of other episodes or (``own``) of all but the query itself."""
    cosine = bank[queries] @ bank.T
    if own:
        cosine[np.arange(len(queries)), queries] = -np.inf
    else:
        cosine[episode[queries][:, None] == episode[None]] = -np.inf
    part = np.argpartition(-cosine, K, axis=1)[:, :K]
    order = np.argsort(-np.take_along_axis(cosine, part, axis=1), axis=1)
    return np.take_along_axis(part, order, axis=1)


def measures(
    bank: FloatArray, data: Demonstrations, queries: IntArray, similarity: ActionSimilarity, colours: NDArray[Any]
) -> dict[str, float]:
    """Of an encoder's neighbours; see the module."""
    episode = data.episode_index()
    near = nearest(bank, queries, episode)
    apart = np.linalg.norm(colours[near] - colours[queries][:, None], axis=2).mean()
    random = np.linalg.norm(colours[np.random.default_rng(1).permutation(queries)] - colours[queries], axis=1).mean()
    anywhere = nearest(bank, queries, episode, own=True)
    return {
        "positives": round(positives(similarity, queries, near), 4),
        "colour distance": round(float(apart / random), 4),
        "own demonstration": round(float((episode[anywhere] == episode[queries][:, None]).mean()), 4),
    }


def random_measures(data: Demonstrations, queries: IntArray, similarity: ActionSimilarity) -> dict[str, float]:
    """The same of random timesteps."""
    near = np.random.default_rng(2).integers(0, data.num_steps, (len(queries), K))
    episode = data.episode_index()
    return {
        "positives": round(positives(similarity, queries, near), 4),
        "colour distance": 1.0,
        "own demonstration": round(float((episode[near] == episode[queries][:, None]).mean()), 4),
    }


def positives(similarity: ActionSimilarity, queries: IntArray, near: IntArray) -> float:
    """Share of the neighbours whose distance is within the threshold."""
    limit = similarity.distribution.threshold
    found = [
        similarity.distances(np.r_[query, others], 1)[0, 1:] <= limit
        for query, others in zip(queries, near, strict=True)
    ]
    return float(np.mean(found))


# -- picture ---------------------------------------------------------------------------------------


def picture(banks: dict[str, FloatArray], data: Demonstrations, images: ImageArray, shown: IntArray) -> Image.Image:
    """For each bank, side by side: queries with their neighbours, and below them the latent map."""
    wide = (K + 1) * (TILE + GAP) + 8 * GAP
    sheet = Image.new("RGB", (len(banks) * wide, TITLE + ROWS * (TILE + GAP) + MAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(16)
    for column, (name, bank) in enumerate(banks.items()):
        left = column * wide
        pen.text((left, 4), f"{METHODS[name]}: query, and its {K} nearest neighbours", "black", font)
        near = nearest(bank, shown, data.episode_index())
        for line, (query, others) in enumerate(zip(shown, near, strict=True)):
            top = TITLE + line * (TILE + GAP)
            for place, row in enumerate([query, *others]):
                tile = Image.fromarray(images[row]).resize((TILE, TILE))
                sheet.paste(tile, (left + place * (TILE + GAP) + (2 * GAP if place else 0), top))
        drawn = latent_picture(bank, data).resize((MAP * 2, MAP), Image.Resampling.LANCZOS)
        sheet.paste(drawn, (left, sheet.height - MAP))
    return sheet


def latent_picture(bank: FloatArray, data: Demonstrations, scale: int = 2) -> Image.Image:
    """t-SNE of some demonstrations, a line for each."""
    chosen = np.linspace(0, len(data) - 1, EPISODES).round().astype(int)
    bounds = [data.bounds(int(episode)) for episode in chosen]
    xy = latent_map(np.concatenate([bank[first:end] for first, end in bounds]), 0, PERPLEXITY)
    size = np.array([MAP * 2, MAP]) * scale
    low, high = xy.min(axis=0), xy.max(axis=0)
    xy = (xy - (low + high) / 2) / (high - low).max() * (size.min() * 0.92) + size / 2
    sheet = Image.new("RGB", tuple(size.tolist()), "white")
    pen, first = ImageDraw.Draw(sheet), 0
    for number, (start, end) in enumerate(bounds):
        line = [tuple(point) for point in xy[first : first + end - start].tolist()]
        pen.line(line, PALETTE[number % len(PALETTE)], width=3, joint="curve")
        first += end - start
    return sheet


if __name__ == "__main__":
    raise SystemExit(command(Flags, main))
