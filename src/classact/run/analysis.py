"""The data of the report's figures: why the policy acted as it did, and what it saw as alike."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.images import resize_images
from classact.data.statistics import Statistics
from classact.data.types import Demonstrations, ImageArray, IntArray, Observation, RolloutResult
from classact.data.video import write_mp4
from classact.errors import ConfigError
from classact.evaluation.actions import HeldOut
from classact.evaluation.config import EvaluationConfig
from classact.evaluation.consistency import consistency, left_out
from classact.evaluation.rows import ActionError, VideoRow
from classact.policies import RetrievalPolicy
from classact.policies.base import Decision, Policy, decide
from classact.policies.novelty import Progress
from classact.run.config import FramesConfig
from classact.run.folder import Run
from classact.run.stand_ins import ACTIONS
from classact.run.tsne import latent_map
from classact.similarity import ActionSimilarity
from classact.sims import make_simulator
from classact.sims.rendering import appearance_seed
from classact.utils.codec import to_json
from classact.utils.locks import update_json
from classact.utils.storage import read_arrays, write_arrays, write_json

OBSERVED = "observed:"  # before a camera's name
MAP_EPISODES = 20
PERPLEXITY = 100.0  # as in the paper's J.1
MOST_INCONSISTENT = 8  # demonstrations that are shown with pictures
MOMENTS = (0.1, 0.3, 0.5, 0.7, 0.85, 0.4)  # how far into its episode each query of neighbors.safetensors lies
PICTURE = 160
VIDEO = 256
VIDEO_STRIDE = 2
LEFTOVER_SECONDS = 3600
_LEFTOVER = re.compile(r"\..+\.(\d+\.[0-9a-f]{8}|[0-9a-f]{8}\.old)\.tmp")
"""Temporary names of :func:`classact.utils.storage.atomic_path`."""


def write_statistics(run: Run, data: Demonstrations, heldout: int) -> None:
    """analysis/data.json: what the demonstrations hold, as recorded; the last ``heldout`` are held out."""
    write_json(run.statistics, to_json(Statistics.of(data, heldout)))


def write_similarity(run: Run, similarity: ActionSimilarity, of: str = ACTIONS) -> None:
    """analysis/similarity.json: the distribution of distances between actions, or ``of`` what stands for them, with its
    threshold.
    """
    config = similarity.config
    settings = {"of": of, "metric": config.metric, "cost": config.cost, "horizon": config.horizon, "seed": config.seed}
    write_json(run.analysis / "similarity.json", settings | similarity.distribution.to_json())


def write_latent_map(run: Run, policy: RetrievalPolicy, seed: int = 0) -> None:
    """analysis/latent_map.safetensors: t-SNE of the bank, 20 episodes, perplexity 100 (paper J.1)."""
    ends = policy.episode_ends
    starts = np.concatenate([[0], ends[:-1]])
    chosen = np.unique(np.linspace(0, len(ends) - 1, min(MAP_EPISODES, len(ends))).round().astype(int))
    rows = np.concatenate([np.arange(starts[e], ends[e]) for e in chosen])
    episode = np.concatenate([np.full(ends[e] - starts[e], e) for e in chosen])
    progress = np.concatenate([np.linspace(0, 1, ends[e] - starts[e]) for e in chosen])
    arrays: dict[str, Any] = {
        "xy": latent_map(policy.bank[rows], seed, PERPLEXITY),
        "episode": episode.astype(np.int64),
        "progress": progress.astype(np.float32),
    }
    write_arrays(run.analysis / "latent_map.safetensors", arrays)


def write_neighbors(
    run: Run,
    policy: RetrievalPolicy,
    data: Demonstrations,
    frames: FramesConfig | None,
    results: Sequence[RolloutResult],
    simulator: str,
    evaluation: EvaluationConfig,
    queries: int = 6,
) -> None:
    """analysis/neighbors.safetensors: timesteps of rollouts, and the demonstrated timesteps each decision came from
    (J.2).

    Queries are spread over episodes from best to worst and over the time before success.

    Args:
        data: what is in the policy's bank, with the images that the encoder saw.
        frames: how the first camera's images of ``data`` were rendered (:func:`classact.run.frames.needs_rendering`),
            to draw them larger. None: they were recorded, and are shown unchanged.
        results: episodes to take timesteps from.
        simulator, evaluation: of these episodes.
    """
    sim = make_simulator(
        simulator, image_size=evaluation.image_size, shift=evaluation.shift, cameras=policy.spec.cameras or None
    )
    order = sorted(range(len(results)), key=lambda i: -_score(results[i]))
    picked = [order[i] for i in np.linspace(0, len(order) - 1, min(queries, len(order))).round().astype(int)]
    rows: list[dict[str, Any]] = []
    for number, index in enumerate(picked):
        result = results[index]
        reached = min((step for step in result.first_success.values() if step), default=result.steps)
        fraction = MOMENTS[number % len(MOMENTS)]
        assert result.decisions is not None
        chosen = int(np.searchsorted(result.decisions, max(1, fraction * reached))) - 1
        sim.reset(result.seed)
        memory: list[Any] = []
        for step in result.decisions[: chosen + 1] if policy.spec.remembers else [result.decisions[chosen]]:
            sim.set_state(result.states[step], step=int(step))
            observation = sim.observe()
            decision = decide(policy, [observation], [np.asarray(memory, np.float32)])
            memory.extend([] if decision.latents is None else decision.latents)
        picture = _picture(sim, next(iter(observation.images.values())))
        row = reason_row(policy, data, frames, observation, decision, picture) | {
            "query_seed": np.int64(result.seed),
            "query_step": np.int64(step),
        }
        rows.append(row)
    world = sim.spec.world
    sim.close()
    arrays = _stacked(rows)
    if world is not None:  # otherwise actions are no points that could be drawn onto an image
        arrays["world"] = np.asarray(world[1] - world[0], np.float64)
    write_arrays(run.neighbors, arrays)


def write_recorded_neighbors(
    run: Run, policy: RetrievalPolicy, data: Demonstrations, held: HeldOut, queries: int = 6
) -> None:
    """analysis/neighbors.safetensors, of timesteps of held-out demonstrations (``held``): nothing is rolled out.

    They are of those that carry actions, where any do. ``query_seed`` is the demonstration's number among all of them,
    and ``done`` (Q, T_a, D) what was done there; of no steps where that is not known.
    """
    known = np.flatnonzero(held.data.carries_actions())
    shown = known if len(known) else np.arange(len(held.data))
    spread = shown[np.linspace(0, len(shown) - 1, min(queries, len(shown))).round().astype(int)]
    episodes = np.resize(spread, queries)  # again and again where they are few
    rows: list[dict[str, Any]] = []
    for number, episode in enumerate(episodes.tolist()):
        start, end = held.data.bounds(episode)
        row = int(start + MOMENTS[number % len(MOMENTS)] * (end - start - 1))
        ((observation,),) = held.observations(np.array([row]))
        decision = decide(policy, [observation])
        picture = resize_images(next(iter(observation.images.values()))[None], PICTURE)[0]
        values = reason_row(policy, data, None, observation, decision, picture) | {
            "query_seed": np.int64(len(data) + episode),
            "query_step": np.int64(row - start),
            "done": held.chunks(held.data, np.array([row]))[0, : None if len(known) else 0],
        }
        rows.append(values)
    write_arrays(run.neighbors, _stacked(rows))


def _stacked(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: np.stack([row[key] for row in rows]) for key in (rows[0] if rows else ())}


def reason_row(
    policy: RetrievalPolicy,
    data: Demonstrations,
    frames: FramesConfig | None,
    observation: Observation,
    decision: Decision,
    picture: ImageArray,
) -> dict[str, Any]:
    """A decision's part of neighbors.safetensors: what was seen, and the demonstrated timesteps it came from.

    ``picture`` (PICTURE, PICTURE, 3) shows the observation.
    """
    neighbors = decision.neighbors
    assert neighbors is not None
    rows = neighbors.rows[0]
    episodes = np.searchsorted(policy.episode_ends, rows, side="right")
    first = np.concatenate([[0], policy.episode_ends[:-1]])[episodes]
    return {
        "query_images": picture,
        "neighbor_images": _demonstrated(data, frames, rows, episodes),
        "weights": neighbors.weights[0],
        "cosine": neighbors.cosine[0],
        "episode": episodes.astype(np.int64),
        "step": (rows - first).astype(np.int64),
        "query_chunk": decision.chunk[0],
        "neighbor_chunks": policy.chunks(rows),
        "visits": np.int64(0 if decision.visits is None else decision.visits[0]),
        # What was observed, so that heads can be asked about it later.
        **{f"{OBSERVED}{camera}": image for camera, image in observation.images.items()},
        "proprioception": observation.proprioception,
        **({} if observation.language is None else {"language": observation.language}),
    }


def write_consistency(
    run: Run, policy: RetrievalPolicy, data: Demonstrations, progress: Progress | None = None
) -> None:
    """analysis/consistency.json, and pictures and actions of the demonstrations that differ most from the others.

    Nothing is written where there are not two different ones. ``data`` is what is in the policy's bank, with images.
    """
    try:
        found = left_out(policy, data, progress)
    except ConfigError:
        return
    made = consistency(data, found, policy.config.chunk_length)
    shown = made.ranked[:MOST_INCONSISTENT]
    rows = np.array([data.bounds(one.episode)[0] + one.worst for one in shown])
    at = np.searchsorted(found.rows, rows)
    heaviest = found.neighbors.weights[at].argmax(axis=1)
    other = found.neighbors.rows[at, heaviest]
    episode = data.episode_index()[other]
    images = data.images[next(iter(data.images))]
    arrays = {
        "episode": np.array([one.episode for one in shown], np.int64),
        "images": resize_images(np.asarray(images[rows]), PICTURE),
        "other_images": resize_images(np.asarray(images[other]), PICTURE),
        "other_episode": episode,
        "other_step": other - (data.episode_ends - data.lengths)[episode],
        "done": policy.chunks(rows),
        "others": found.chunks[at],
    }
    write_arrays(run.inconsistent, arrays)
    write_json(run.consistency, to_json(made))


def write_actions(run: Run, rows: Sequence[ActionError]) -> None:
    """Add to analysis/actions.json, :class:`~classact.evaluation.actions.ActionError` by policy."""

    def added(before: dict[str, Any]) -> dict[str, Any]:
        return before | {row.policy: to_json(row) for row in rows}

    update_json(run.actions, added, {})


def write_head_chunks(run: Run, head: Run, policy: Policy) -> None:
    """analysis/chunks.safetensors of a head: what it plans where the run's reasons are shown, (Q, T_a, D).

    Nothing is written where none are shown, or where the head decides from several observations.
    """
    if not (path := run.neighbors).exists() or policy.spec.history > 1:
        return
    arrays = read_arrays(path)
    language = arrays.get("language")
    cameras = {name.removeprefix(OBSERVED): images for name, images in arrays.items() if name.startswith(OBSERVED)}
    if not set(policy.spec.cameras) <= set(cameras):
        return
    seen = [
        Observation(
            {camera: images[q] for camera, images in cameras.items()},
            proprioception,
            language=None if language is None else language[q],
        )
        for q, proprioception in enumerate(arrays["proprioception"])
    ]
    queries = {name: arrays[name] for name in ("query_seed", "query_step")}
    write_arrays(head.chunks, {"chunks": decide(policy, seen).chunk, **queries})


def _picture(sim: Any, fallback: ImageArray) -> ImageArray:
    """A frame to look at, drawn larger where the simulator can."""
    return sim.render(PICTURE) if hasattr(sim, "render") else resize_images(fallback[None], PICTURE)[0]


def _demonstrated(data: Demonstrations, frames: FramesConfig | None, rows: IntArray, episodes: IntArray) -> ImageArray:
    """(k, PICTURE, PICTURE, 3) frames of demonstrated timesteps ``rows`` (k,), as the encoder saw them."""
    camera = next(iter(data.images))
    if frames is None or data.states is None:
        return resize_images(np.asarray(data.images[camera][rows]), PICTURE)
    sim = make_simulator(frames.simulator, image_size=frames.render_size, shift=frames.shift, cameras=(camera,))
    starts = np.concatenate([[0], data.episode_ends[:-1]])
    pictures = []
    for row, episode in zip(rows, episodes, strict=True):
        sim.set_appearance(appearance_seed(frames.seed, int(episode)))
        sim.set_state(data.states[row], step=int(row - starts[episode]))
        pictures.append(_picture(sim, sim.observe().images[camera]))
    sim.close()
    return np.stack(pictures)


def _score(result: RolloutResult) -> float:
    """An episode's largest value of the simulator's first metric (Push-T: coverage)."""
    return next(iter(result.maxima.values()))


def write_videos(
    run: Run, results: Sequence[RolloutResult], name: str, criterion: str, simulator: str, evaluation: EvaluationConfig
) -> None:
    """analysis/videos: the best, the median and the worst rollout, re-rendered from their states."""
    folder = run.analysis / "videos"
    order = sorted(results, key=lambda r: (r.first_success[criterion] or 10**9, -_score(r), r.seed))
    sim = make_simulator(simulator, image_size=evaluation.image_size, shift=evaluation.shift)
    rows = []
    for label, result in (("best", order[0]), ("median", order[len(order) // 2]), ("worst", order[-1])):
        sim.reset(result.seed)
        reached = result.first_success[criterion]
        end = min(result.steps, reached + 20) if reached else result.steps
        pictures = []
        for step in range(0, end + 1, VIDEO_STRIDE):
            sim.set_state(result.states[step], step=step)
            image = next(iter(sim.observe().images.values()))
            pictures.append(sim.render(VIDEO) if hasattr(sim, "render") else image)
        path = write_mp4(folder / f"{name}-{label}.mp4", np.stack(pictures), round(sim.spec.control_hz))
        coverage, success = result.maxima.get("coverage"), result.success[criterion]
        rows.append(VideoRow(path.name, label, name, result.seed, coverage, success))
    sim.close()
    write_json(folder / "videos.json", to_json(rows))


def remove_leftovers(run: Run) -> None:
    """Delete what a killed process left half-written in the run's folder.

    Recent files stay: other processes may be writing evaluations and heads.
    """
    for path in sorted(Path(run.root).rglob(".*.tmp")):
        try:
            young = time.time() - path.stat().st_mtime < LEFTOVER_SECONDS
        except FileNotFoundError:
            continue
        if young or not _LEFTOVER.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
