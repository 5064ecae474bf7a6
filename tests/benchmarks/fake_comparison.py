"""A results file of benchmarks/table1 with every kind of cell, drawn without any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from classact.run.folder import Run
from classact.utils.storage import write_arrays, write_json
from fake_run import latent_map, neighbor_arrays

SKILL = {
    "random": (0.03, 0.01),
    "imagenet": (0.1, 0.05),
    "tcn": (0.3, 0.12),
    "byol": (0.2, 0.08),
    "dynamo": (0.25, 0.1),
    "inverse-dynamics": (0.7, 0.4),
    "class": (0.82, 0.6),
    "class+0.1*byol": (0.8, 0.62),
}
HEADS = {
    "rep": list(SKILL),
    "mlp": ["imagenet", "class"],
    "mlp-rep": ["class"],
    "dp": ["random", "imagenet", "tcn", "class"],
}
CRITERIA = {"coverage>0.90": 0.9, "iou>0.90": 0.95}
GAIN = {"rep": 0.0, "mlp": 0.02, "mlp-rep": -0.1, "dp": 0.06}
LATENCY = {"rep": 4.2, "mlp": 5.1, "mlp-rep": 4.2, "dp": 38.0}
REASON = "the weights cannot be downloaded without a network"


def cell(
    method: str,
    head: str,
    shift: str,
    *,
    augmentation: str = "none",
    seed: int = 0,
    variant: str = "",
    demonstrations: int = 186,
    starts: int = 100,
    bonus: float = 0.0,
) -> dict[str, Any]:
    """One cell that is done."""
    rng = np.random.default_rng([sum(map(ord, method + head + shift + augmentation + variant)), seed, demonstrations])
    level = SKILL[method][shift == "rand"] + GAIN[head] + bonus
    level = float(np.clip(level * min(1.0, 0.35 + 0.65 * np.log(demonstrations) / np.log(186)), 0.01, 0.97))
    # Starts are of different difficulty, for all methods alike.
    hardness = np.random.default_rng(5).normal(0, 0.6, starts)
    chance = 1 / (1 + np.exp(-(np.log(level / (1 - level)) - hardness)))
    best = np.where(rng.random(starts) < chance, 0.96, 0.5) + rng.uniform(-0.04, 0.04, starts)
    images = {"4x budget": 2_000_000}.get(variant, 500_000) * (method not in ("random", "imagenet") or head != "rep")
    seconds = images / {"rep": 900, "mlp": 600, "mlp-rep": 600, "dp": 350}[head]
    # Retrieval with a head's encoder has the curves of the head.
    learns = images > 0 and not head.endswith("-rep")
    points = np.linspace(0.2, 1, 5)
    name = "-".join(filter(None, (method, head, shift, augmentation, variant, str(demonstrations), str(seed))))
    return {
        "method": method,
        "head": head,
        "shift": shift,
        "augmentation": augmentation,
        "seed": seed,
        "variant": variant,
        "demonstrations": demonstrations,
        "status": "done",
        "reason": "",
        "learning_rate": 1e-4 if images else None,
        "encoder_lr": None if head == "rep" else 1e-5,
        "tau": 0.001 if head.endswith("rep") else None,
        "k": 64 if head.endswith("rep") else None,
        "images": images,
        "steps": images // 160,
        "training_seconds": seconds,
        "total_seconds": seconds * 1.1 + 400,
        "starts": list(range(100_000, 100_000 + starts)),
        "success": {name: (best > limit).astype(int).tolist() for name, limit in CRITERIA.items()},
        "score": best.round(3).tolist(),
        "loss": [[int(i), i / 900, 4 * float(np.exp(-i / 1e5)) + 1.5] for i in np.linspace(1, images, 60) if learns],
        "curve": [[int(images * x), seconds * x, int(rng.binomial(50, level * x**0.5)), 50] for x in points if learns],
        "latency_ms": {"median": LATENCY[head], "p95": LATENCY[head] * 1.3} if seed == 0 else None,
        "probe": {
            "action R²": {"value": level * 0.5 + 0.2, "low": level * 0.5 + 0.17, "high": level * 0.5 + 0.23},
            "episode leakage": {"value": 1 - level + float(rng.normal(0, 0.05)), "low": None, "high": None},
        },
        "folder": f"cells/{name.replace('*', 'x').replace(' ', '-')}",
    }


def results(seeds: int = 1, starts: int = 100) -> dict[str, Any]:
    """Everything: the grid with missing and planned cells, another augmentation, variants, fewer demonstrations."""
    found: list[dict[str, Any]] = []
    for head, methods in HEADS.items():
        for method in methods:
            for shift in ("fixed", "rand"):
                found += [cell(method, head, shift, seed=seed, starts=starts) for seed in range(seeds)]
    for method in ("class", "imagenet"):
        found.append(cell(method, "dp", "rand", augmentation="hsv", bonus=0.15, starts=starts))
    found.append(cell("tcn", "rep", "rand", variant="4x budget", bonus=0.1, starts=starts))
    for count in (25, 50, 100):
        for head in ("rep", "dp"):
            for shift in ("fixed", "rand"):
                found.append(cell("class", head, shift, demonstrations=count, starts=starts))
    bare = {"seed": 0, "variant": "", "augmentation": "none", "demonstrations": 186}
    for head in ("rep", "dp"):
        for shift in ("fixed", "rand"):
            found.append({"method": "r3m", "head": head, "shift": shift, **bare, "status": "missing", "reason": REASON})
    found.append({"method": "equivar", "head": "dp", "shift": "fixed", **bare, "status": "planned", "reason": ""})
    return {
        "format": "classact-table1-1",
        "task": "pusht",
        "data": {"name": "pusht-human", "episodes": 206, "steps": 25650, "heldout": 20, "fingerprint": "a1b2"},
        "protocol": {
            "budget_images": 500_000,
            "encoder": "small, 64 px",
            "episodes": starts,
            "first_seed": 100_000,
            "criterion": "coverage>0.90",
            "criteria": list(CRITERIA),
            "metric": "coverage",
            "grid": {"rates": [3e-5, 1e-4, 3e-4], "images": 100_000, "starts": 50, "first_seed": 50_000},
            "notes": ["Encoders start from random weights, unlike in the paper."],
        },
        "hardware": {"cpu": "Xeon", "cores": 2, "gpu": None},
        "versions": {"classact": "0.1.0"},
        "cells": {f"cell-{i}": value for i, value in enumerate(found)},
        "tuning": [
            {
                "method": method,
                "shift": "fixed",
                "augmentation": "none",
                "learning_rate": rate,
                "images": 100_000,
                "successes": wins,
                "starts": 50,
                "score": 0.4 + wins / 100,
                "chosen": wins == 30,
            }
            for method, counts in {"class": (12, 30, 22), "tcn": (4, 9, 30)}.items()
            for rate, wins in zip((3e-5, 1e-4, 3e-4), counts, strict=True)
        ],
    }


def write_fake_comparison(root: Path, seeds: int = 1, folders: bool = True, size: int = 32) -> Path:
    """Write a results file and, with ``folders``, what run folders of two methods hold for the page."""
    value = results(seeds)
    write_json(root / "results.json", value)
    if folders:
        for number, row in enumerate(value["cells"].values()):
            if row["status"] == "done" and row["method"] in ("class", "tcn", "byol") and row["head"] == "rep":
                analysis = Run(root / row["folder"]).analysis
                rng = np.random.default_rng(number)
                write_arrays(analysis / "latent_map.safetensors", latent_map(rng, episodes=24, steps=40))
                if row["method"] != "byol":
                    write_arrays(analysis / "neighbors.safetensors", neighbor_arrays(rng, 3, 10, size))
    return root / "results.json"
