"""A small run folder with every file that the report reads, drawn without any simulator or training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from classact.data.statistics import Spread, Statistics, View
from classact.data.video import write_mp4
from classact.evaluation.rows import Consistency, EpisodeError, EvaluationRow, IntermediateRow
from classact.policies.config import NoveltyConfig
from classact.policies.novelty import HELD_OUT, Novelty
from classact.run.config import HeadRunConfig
from classact.run.folder import Run
from classact.run.presets import HEAD_PRESETS, from_preset
from classact.utils.codec import to_json
from classact.utils.statistics import wilson_interval
from classact.utils.storage import read_arrays, read_jsonl, write_arrays, write_json, write_jsonl

WORLD = 512
CRITERIA = {"coverage > 0.95": 0.95, "coverage > 0.90": 0.90}
SKILL = {"class": 6.0, "untrained": 0.9, "state": 11.0}


def frame(agent: np.ndarray, x: float, y: float, size: int = 96) -> np.ndarray:
    """(size, size, 3) uint8 view of the task: a block and the agent that pushes it, as squares."""
    image = np.full((size, size, 3), 255, np.uint8)
    for centre, half, colour in (((x, y), 60, (119, 136, 153)), (tuple(agent), 15, (65, 105, 225))):
        left, top = ((np.clip(np.array(centre) - half, 0, WORLD)) * size / WORLD).astype(int)
        right, bottom = ((np.clip(np.array(centre) + half, 0, WORLD)) * size / WORLD).astype(int)
        image[top:bottom, left:right] = colour
    return image


def scene(progress: float, rng: np.random.Generator, size: int = 96) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A frame and the chunk that follows: image, (8, 2) chunk, agent."""
    x, y = 256 + (1 - progress) * 90 + rng.normal(0, 8), 236 + (1 - progress) * 70 + rng.normal(0, 8)
    agent = np.array([x + 75, y + 60]) + rng.normal(0, 8, 2)
    times = np.linspace(0, 1, 8)[:, None]
    goal = np.array([300.0, 270.0]) + rng.normal(0, 6, 2)
    bend = np.array([25.0, -35.0]) * np.sin(np.pi * times) * (1 + rng.normal(0, 0.3))
    return frame(agent, x, y, size), (agent + times * (goal - agent) + bend).astype(np.float32), agent


def write_fake_run(
    root: Path, episodes: int = 50, queries: int = 5, neighbors: int = 8, size: int = 96, heads: bool = True
) -> Run:
    """Write the folder; every number is drawn from fixed seeds. Without ``heads``: retrieval alone, with no alarm."""
    run, rng = Run(root), np.random.default_rng(7)
    write_json(run.config, config())
    write_jsonl(run.train_log, training_rows(rng))
    rows = []
    for encoder in SKILL:
        for shift in ("none", "camera"):
            rows += evaluation(run, encoder, shift, episodes, rng)
    write_json(run.summary, to_json(rows))
    write_json(run.analysis / "similarity.json", similarity(rng))
    write_arrays(run.analysis / "latent_map.safetensors", latent_map(rng))
    write_arrays(run.analysis / "neighbors.safetensors", neighbor_arrays(rng, queries, neighbors, size))
    videos(run, rng)
    if heads:
        add_heads(run, rows, episodes, np.random.default_rng(11))
    return run


HEADS = {
    "diffusion": ("diffusion", "fine-tuned", "crop, noise", "class", 9.0),
    "mlp": ("mlp", "fine-tuned", "crop, noise", "class", 5.0),
    "mlp-frozen": ("mlp", "frozen", "none", "class", 3.0),
    "diffusion-scratch": ("diffusion", "from scratch", "crop, noise", "scratch", 4.0),
}
"""Name -> head, training, augmentation, encoder, skill."""

CHUNKS_OF = "mlp-frozen"
"""The head that was asked what it would do at the queries: every action 30 further down and right."""


def add_heads(run: Run, rows: list[EvaluationRow], episodes: int, rng: np.random.Generator) -> None:
    """Trained heads, evaluations during training with their maxima, and novelty."""
    intermediates = stage_rows("pretrain", rows[:2], np.linspace(2200, 4000, 10), rng)
    rows += maxima(rows[:2], intermediates)
    for name, (head, training, augmentation, encoder, skill) in HEADS.items():
        folder = run.head(name)
        title = f"{'MLP' if head == 'mlp' else 'Diffusion Policy'}, {training}"
        scratch, frozen = training == "from scratch", training == "frozen"
        made = HEAD_PRESETS["paper-pusht"].config(head, encoder="scratch" if scratch else "class", frozen=frozen)
        settings = HeadRunConfig(made, "scratch" if scratch else "run")
        timings = {"training": 1800.0 * (1 + (head == "diffusion")), "evaluate": 260.0, "intermediate": 900.0}
        write_json(Run(folder).config, {"title": title, "settings": to_json(settings), "timings": timings})
        write_jsonl(Run(folder).train_log, head_rows(training, rng))
        if name == CHUNKS_OF:
            queries = read_arrays(run.neighbors)
            asked = {key: queries[key] for key in ("query_seed", "query_step")}
            write_arrays(Run(folder).chunks, {"chunks": queries["query_chunk"] + 30, **asked})
        own = evaluation(run, encoder, "none", episodes, rng, policy=head, skill=skill, name=f"{name}-none")
        own = [replace(row, training=training, augmentation=augmentation) for row in own]
        steps = stage_rows(f"heads/{name}", own, np.linspace(300, 3000, 10), rng)
        intermediates += steps
        rows += own + maxima(own, steps)
    again = replace(intermediates[0], successes=0, success=0.0)  # of one row, the later counts
    run.add_intermediate([again, *intermediates])
    write_json(run.summary, to_json(rows))
    novelty = Novelty(np.arange(20.0), 99, NoveltyConfig(), HELD_OUT)
    write_json(run.policy / "policy.json", {"novelty": to_json(novelty)})
    add_demonstrations(run)
    for shift in ("none", "camera"):
        add_novelty(run, f"retrieval-class-{shift}", 0.35 if shift == "none" else 0.6, rng)


def add_demonstrations(run: Run, count: int = 1000, shown: int = 8, size: int = 32) -> None:
    """What they hold, and how far each is from the others; the last of 1,000 stands out."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(50, 300, count)
    actions = tuple(Spread.of(f"point {axis}", rng.uniform(0, WORLD, 5000)) for axis in "xy")
    spread, steps = Spread.of("steps", lengths), int(lengths.sum())
    counts = {"demonstrations": count, "heldout": 0, "steps": steps, "median": float(np.median(lengths)), "fps": 10.0}
    tasks = {"tasks": (("push <b>the</b> T", count),), "all_tasks": 1}
    seen = {"cameras": (View("top", 96, 96),), "rendered": "", "actions": actions, "all_actions": 2}
    write_json(run.statistics, to_json(Statistics(lengths=spread, **counts, **tasks, **seen)))
    errors = np.append(rng.uniform(0.2, 0.3, count - 1), 0.9)
    episodes = tuple(EpisodeError(e, int(lengths[e]), float(errors[e]), 3, 1.0) for e in range(count))
    found = Consistency(16, 10_000, steps, episodes)
    write_json(run.consistency, to_json(found))
    pictures = np.stack([scene(0.5, rng, size)[0]] * shown)
    chunks = np.stack([scene(0.5, rng, size)[1]] * shown)
    numbers = np.arange(shown)
    arrays = {"images": pictures, "other_images": pictures, "done": chunks, "others": chunks + 5}
    arrays |= {"other_episode": numbers, "other_step": numbers}
    worst = np.array([one.episode for one in found.ranked[:shown]])
    write_arrays(run.inconsistent, arrays | {"episode": worst})


def head_rows(training: str, rng: np.random.Generator) -> list[dict]:
    steps = 3000
    return [
        {
            "step": step,
            "steps": steps,
            "loss": 0.4 * np.exp(-step / 300) + 0.02 + rng.normal(0, 0.004),
            "lr": 1e-4 * min(step / 500, 0.5 * (1 + np.cos(np.pi * step / steps))),
            "encoder_lr": (training != "frozen") * 1e-5 * min(step / 500, 0.5 * (1 + np.cos(np.pi * step / steps))),
            "grad_norm": 0.3 + np.exp(-step / 400) + rng.normal(0, 0.03),
            "images_per_second": 120.0,
            "seconds": step * 0.6,
        }
        for step in range(20, steps + 1, 20)
    ]


def stage_rows(
    stage: str, last: list[EvaluationRow], steps: np.ndarray, rng: np.random.Generator
) -> list[IntermediateRow]:
    """Ten evaluations by each criterion, the last of which is the last checkpoint's."""
    rows = []
    for i, step in enumerate(steps.astype(int)):
        for end in last:
            n, k = end.episodes, end.successes
            if i < len(steps) - 1:
                k = int(rng.binomial(n, min(0.98, k / n * (0.3 + 0.7 * ((i + 1) / len(steps)) ** 0.5))))
            low, high = wilson_interval(k, n)
            found = {"successes": k, "success": k / n, "low": low, "high": high}
            rows.append(IntermediateRow(**vars(end) | found, stage=stage, step=int(step), steps=int(steps[-1])))
    return rows


def maxima(last: list[EvaluationRow], intermediates: list[IntermediateRow]) -> list[EvaluationRow]:
    """The largest row of a stage by criterion, labelled like the last checkpoint's."""
    found = []
    for end in last:
        best = max((row for row in intermediates if row.criterion == end.criterion), key=lambda row: row.success)
        kept = {key: getattr(best, key) for key in ("successes", "episodes", "success", "low", "high")}
        found.append(replace(end, **kept, maximum_of=10))
    return found


def add_novelty(run: Run, name: str, base: float, rng: np.random.Generator) -> None:
    """Novelty of every decision into an evaluation; failed episodes drift away from what was demonstrated."""
    folder = run.evaluation(name)
    rows, arrays = read_jsonl(folder / "episodes.jsonl"), read_arrays(folder / "rollouts.safetensors")
    decisions, scores, ends = [], [], []
    for row in rows:
        steps = np.arange(0, row["steps"], 12)
        drift = 0.0 if next(iter(row["success"].values())) else np.linspace(0, 1.1, len(steps))
        raw = base * np.exp(-steps / 150) + drift * rng.uniform(0.4, 1) + rng.normal(0, 0.07, len(steps))
        values = (np.clip(raw, 0, 1) * 21).round() / 21
        over = np.flatnonzero(values > 0.9)
        rang = int(steps[over[0]]) if len(over) else None
        before = {c: rang is not None and (end is None or rang < end) for c, end in row["first_success"].items()}
        row |= {"max_novelty": float(values.max()), "first_alarm": rang, "alarm_before_success": before}
        decisions.append(steps)
        scores.append(values)
        ends.append(len(steps))
    write_jsonl(folder / "episodes.jsonl", rows)
    arrays |= {"decision_ends": np.cumsum(ends), "decisions": np.concatenate(decisions)}
    write_arrays(folder / "rollouts.safetensors", arrays | {"novelty": np.concatenate(scores).astype(np.float32)})


def config() -> dict:
    return {
        "title": "CLASS on Push-T",
        "data": {
            "name": "pusht-human",
            "source": "pusht_human.zarr",
            "episodes": 206,
            "steps": 25650,
            "image_size": 96,
        },
        "settings": to_json(from_preset("paper-pusht", data="pusht_human.zarr")),
        "versions": {"classact": "0.1.0", "python": "3.12.3", "torch": "2.9.0"},
        "hardware": {"cpu": "Intel Xeon", "cores": 2, "gpu": None},
        "created": "2025-11-21T02:40:00+00:00",
        "timings": {"similarity": 48.2, "pretraining": 5400.0, "evaluation": 912.5, "analysis": 61.0},
    }


def training_rows(rng: np.random.Generator) -> list[dict]:
    return [
        {
            "step": step,
            "steps": 4000,
            "epoch": step / 100,
            "loss": 5.2 * np.exp(-step / 900) + 2.1 + rng.normal(0, 0.08),
            "lr": 1e-4 * min(step / 200, 0.5 * (1 + np.cos(np.pi * step / 4000))),
            "grad_norm": 1.5 + 2 * np.exp(-step / 500) + rng.normal(0, 0.15),
            "images_per_second": 310.0 + rng.normal(0, 10),
            "positives": 6.4 + rng.normal(0, 0.3),
            "anchors": 0.93 + rng.normal(0, 0.01),
            "seconds": step * 1.35,
        }
        for step in range(10, 4001, 10)
    ]


def evaluation(
    run: Run,
    encoder: str,
    shift: str,
    episodes: int,
    rng: np.random.Generator,
    policy: str = "retrieval",
    skill: float | None = None,
    name: str = "",
) -> list[EvaluationRow]:
    skill = (skill or SKILL[encoder]) * (1.0 if shift == "none" or encoder == "state" else 0.35)
    name = name or f"{policy}-{encoder}-{shift}"
    rows, traces = [], []
    for seed in range(10_000, 10_000 + episodes):
        best = float(min(1.0, rng.beta(skill + 0.6, 1.0) * 1.02))
        steps = int(rng.integers(90, 200)) if best > 0.95 else 300
        trace = best * np.clip(np.linspace(-0.1, 1.05, steps) + np.cumsum(rng.normal(0, 0.02, steps)), 0, 1) ** 1.5
        trace = (trace / max(trace.max(), 1e-9) * best).astype(np.float32)
        traces.append(trace)
        first = {c: int(np.argmax(trace > t)) + 1 if (trace > t).any() else None for c, t in CRITERIA.items()}
        rows.append(
            {
                "seed": seed,
                "steps": steps,
                "maxima": {"coverage": float(trace.max()), "iou": float(trace.max()) ** 1.2},
                "success": {c: step is not None for c, step in first.items()},
                "first_success": first,
            }
        )
    folder = run.evaluation(name)
    write_jsonl(folder / "episodes.jsonl", rows)
    arrays = {
        "seeds": np.array([row["seed"] for row in rows]),
        "ends": np.cumsum([len(trace) for trace in traces]),
        "coverage": np.concatenate(traces),
    }
    write_arrays(folder / "rollouts.safetensors", arrays)
    result = []
    for criterion in CRITERIA:
        successes = sum(row["success"][criterion] for row in rows)
        low, high = wilson_interval(successes, episodes)
        where = {"policy": policy, "encoder": encoder, "simulator": "pusht", "shift": shift, "evaluation": name}
        counts = {"episodes": episodes, "successes": successes, "success": successes / episodes}
        trained = encoder == "class"
        result.append(
            EvaluationRow(
                **where,
                **counts,
                criterion=criterion,
                low=low,
                high=high,
                seconds=152.3,
                metrics={"coverage": float(np.mean([row["maxima"]["coverage"] for row in rows]))},
                training="representation only" if trained else "none",
                augmentation="crop, noise" if trained else "none",
            )
        )
    return result


def similarity(rng: np.random.Generator) -> dict:
    distances = np.exp(rng.normal(6.6, 0.85, 200_000))
    edges = np.concatenate([[0.0], np.geomspace(5, 2e4, 160)])
    counts, _ = np.histogram(distances, edges)
    return {
        "cost": "euclidean",
        "horizon": 16,
        "quantile": 0.025,
        "threshold": float(np.quantile(distances, 0.025)),
        "pairs": 200_000,
        "seed": 0,
        "epsilon": 0.0044,
        "histogram": {"edges": edges, "counts": counts},
    }


def latent_map(rng: np.random.Generator, episodes: int = 20, steps: int = 60) -> dict[str, np.ndarray]:
    progress = np.tile(np.linspace(0, 1, steps), episodes)
    episode = np.repeat(np.arange(episodes), steps)
    start = rng.normal(0, 25, (episodes, 2))
    t = np.linspace(0, 1, steps)[:, None]
    path = np.stack([60 * np.sin(2.2 * t[:, 0]), 70 * t[:, 0] - 30], axis=1)
    wobble = np.cumsum(rng.normal(0, 0.8, (episodes, steps, 2)), axis=1)
    xy = (path + start[:, None] * (1 - t) ** 2 + wobble + rng.normal(0, 0.8, wobble.shape)).reshape(-1, 2)
    return {"xy": xy.astype(np.float32), "episode": episode, "progress": progress.astype(np.float32)}


def neighbor_arrays(rng: np.random.Generator, queries: int, neighbors: int, size: int) -> dict[str, np.ndarray]:
    out: dict[str, list] = {"query_images": [], "neighbor_images": [], "neighbor_chunks": [], "query_chunk": []}
    cosine = np.sort(rng.uniform(0.9, 0.995, (queries, neighbors)), axis=1)[:, ::-1]
    weights = np.exp(cosine / 0.02)
    weights /= weights.sum(axis=1, keepdims=True)
    for q in range(queries):
        progress = (q + 0.5) / queries
        image, _, _ = scene(progress, rng, size)
        near = [scene(progress, rng, size) for _ in range(neighbors)]
        chunks = np.stack([chunk for _, chunk, _ in near])
        out["query_images"].append(image)
        out["neighbor_images"].append(np.stack([frame for frame, _, _ in near]))
        out["neighbor_chunks"].append(chunks)
        out["query_chunk"].append((weights[q][:, None, None] * chunks).sum(axis=0))
    arrays = {name: np.stack(values) for name, values in out.items()}
    return {name: a.astype(np.float32) if "chunk" in name else a for name, a in arrays.items()} | {
        "weights": weights.astype(np.float32),
        "cosine": cosine.astype(np.float32),
        "episode": rng.integers(0, 206, (queries, neighbors)),
        "step": rng.integers(0, 160, (queries, neighbors)),
        "query_seed": np.full(queries, 10_003),
        "query_step": np.arange(queries) * 24,
        "visits": np.arange(queries) % 3,
    }


def videos(run: Run, rng: np.random.Generator, size: int = 192, steps: int = 40) -> None:
    folder, rows = run.analysis / "videos", []
    for label, coverage in (("best", 0.98), ("median", 0.96), ("worst", 0.41)):
        noise = rng.normal(0, 15, 2)
        frames = []
        for t in np.linspace(0, coverage, steps):
            x, y = 256 + (1 - t) * 90, 236 + (1 - t) * 70
            frames.append(frame(np.array([x + 75, y + 60]) + noise * (1 - t), x, y, size))
        name = "retrieval-class-none"
        file = write_mp4(folder / f"{name}-{label}.mp4", np.stack(frames), fps=10)
        row = {"file": file.name, "label": label, "evaluation": name, "seed": 10_000 + len(rows)}
        rows.append(row | {"coverage": coverage, "success": coverage > 0.95})
    write_json(folder / "videos.json", rows)
