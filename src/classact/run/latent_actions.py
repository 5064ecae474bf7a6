"""Latent actions from demonstrations, most of them without actions: a folder, and how good they are.

A folder holds::

    latent_actions.json    settings, data, the measures of :class:`Measures`, and those of each action dimension
    map.safetensors        latent actions of sampled transitions in the plane, what they decode to, what was done
    model/                 the trained model, for ``--latent-actions``
    checkpoints/, train.jsonl
    latent_actions.html    the page (:func:`classact.pages.build_latent_actions_page`)
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from classact.data.images import frames_digest
from classact.data.normalize import MinMax
from classact.data.types import Demonstrations, FloatArray, IntArray
from classact.errors import ConfigError
from classact.models.latent_actions import LatentActionModel
from classact.models.latent_actions.model import BATCH, around, as_inputs, check_lengths, transitions
from classact.train.config import INCIDENTAL, EngineConfig, LatentActionTrainingConfig
from classact.train.latent_actions import LatentActionTraining
from classact.utils.codec import first_difference, to_json, without
from classact.utils.locks import own
from classact.utils.machine import hardware, versions
from classact.utils.progress import progress_bar, teller
from classact.utils.ranks import Ranks
from classact.utils.storage import check_writable, read_json, write_arrays, write_json

NUMBERS, MODEL, MAP = "latent_actions.json", "model", "map.safetensors"
DRAWN = 1000  # transitions on the map
RIDGE = 1e-3  # of the linear probe, relative to the mean square of its inputs


@dataclass(frozen=True)
class Measures:
    """How good a latent action model is on its demonstrations; errors are mean squares over [-1, 1] of each dimension.

    Attributes:
        action_error: of decoded actions, of labelled demonstrations.
        action_error_others: of those whose actions are known but were not learned from; None where there are none.
        action_variance, action_variance_others: what the mean action would have.
        reconstruction: squared error of the next observation, as it was trained on.
        copy: of taking the last observation for the next.
        probe: share of the variance of the other demonstrations' actions (of the labelled ones where there are none)
            that a linear map of z, fitted on labelled ones, explains.
        spread: least and largest standard deviation of z's dimensions.
    """

    action_error: float
    action_variance: float
    action_error_others: float | None
    action_variance_others: float | None
    reconstruction: float
    copy: float
    probe: float
    spread: tuple[float, float]


def learn_latent_actions(
    data: Demonstrations,
    config: LatentActionTrainingConfig,
    folder: Path,
    *,
    labelled: list[int] | None = None,
    device: str = "cpu",
    engine: EngineConfig | None = None,
    ranks: Ranks | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train, measure and save whatever the folder does not hold yet.

    Args:
        data: demonstrations; those without actions, and those that are not ``labelled``, are only looked at.
        labelled: episodes whose actions are learned from; None: of all that carry any.

    Returns:
        The content of latent_actions.json, on every rank.

    Raises:
        ConfigError: no labelled demonstration, settings that do not fit the data, or those of another folder.
        DataError: an episode of one step.
        TrainingInterrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    ranks = ranks or Ranks()
    check_lengths(data)
    seen = data if labelled is None else data.only_labelled(labelled)
    which = seen.carries_actions()
    identity = {
        "data": data.fingerprint(),
        "labelled": ranges(which),
        "settings": without(to_json(config), *INCIDENTAL),
    }
    if (camera := config.model.camera) is not None and camera in data.images:
        identity["images"] = {camera: frames_digest(data.images[camera])}

    def done() -> dict[str, Any] | None:
        check_writable(folder, folder=True)
        if not (folder / NUMBERS).exists():
            return None
        found: dict[str, Any] = read_json(folder / NUMBERS)
        if difference := first_difference(found.get("identity"), identity, ""):
            raise ConfigError(f"{folder} was made with {difference}. Choose another --out, or remove that folder.")
        LatentActionModel.load(folder / MODEL)
        return found

    if (found := ranks.on_first(done)) is not None:
        return found
    training = LatentActionTraining(seen, config, folder, device, engine or EngineConfig(), ranks, teller(quiet=quiet))
    begin = time.perf_counter()
    with progress_bar("learn latent actions", quiet=quiet or not ranks.first) as bar:
        model = training.fit(bar)

    def finish() -> dict[str, Any]:
        hold = own(folder)
        measured = measure(model, data, seen)
        model.training["measures"] = asdict(measured)
        model.save(folder / MODEL)
        rows, arrays = explain(model, data, seen)
        write_arrays(folder / MAP, arrays)
        numbers = {
            "identity": identity,
            "settings": to_json(config),
            "data": {
                "name": data.name,
                "source": data.source,
                "episodes": len(data),
                "labelled": int(which.sum()),
                "steps": data.num_steps,
            },
            "measures": asdict(measured),
            "dimensions": rows,
            "seconds": round(time.perf_counter() - begin, 1),
            "hardware": hardware(),
            "versions": versions(),
        }
        write_json(folder / NUMBERS, numbers)
        del hold
        return numbers

    return ranks.on_first(finish)


def ranges(chosen: NDArray[np.bool_]) -> str:
    """Which are true, as in "0:50,60:61"."""
    edges = np.flatnonzero(np.diff(np.r_[False, chosen, False].astype(np.int8)))
    return ",".join(f"{first}:{end}" for first, end in edges.reshape(-1, 2).tolist())


def measure(model: LatentActionModel, data: Demonstrations, seen: Demonstrations) -> Measures:
    """Of a trained model: ``data`` with all actions that are known, ``seen`` with those that it learned from."""
    rows, episodes = transitions(data.episode_ends), data.episode_index()
    z, actions = model.infer(data), model.decoder.actions
    own, known = seen.carries_actions(), data.carries_actions()
    labelled, others = (rows[mask[episodes[rows]]] for mask in (own, known & ~own))
    decoded, done = actions.apply(model.decoder.decode(z)), actions.apply(data.actions)

    def error(some: IntArray) -> float:
        return float(((decoded[some] - done[some]) ** 2).mean())

    tested = others if len(others) else labelled
    reconstruction, copy = reconstruction_error(model, data, rows)
    spread = z[rows].std(axis=0)
    return Measures(
        error(labelled),
        float(done[labelled].var(axis=0).mean()),
        error(others) if len(others) else None,
        float(done[others].var(axis=0).mean()) if len(others) else None,
        reconstruction,
        copy,
        linear_probe(z[labelled], done[labelled], z[tested], done[tested]),
        (float(spread.min()), float(spread.max())),
    )


def explain(
    model: LatentActionModel, data: Demonstrations, seen: Demonstrations
) -> tuple[list[dict[str, Any]], dict[str, NDArray[Any]]]:
    """What of each action dimension latent actions say, and their map.

    Returns:
        Of each dimension its name, the error of decoded actions, the variance and the linear probe's R^2, as in
        :class:`Measures`: of others than the labelled demonstrations, where there are any that are known.
        Of sampled transitions ``xy`` (n, 2), the principal components of z; ``decoded`` and ``done`` (n, D) actions
        over [-1, 1]; ``known`` and ``labelled`` (n,), whether ``done`` means anything, and whether it was learned from.
    """
    rows, episodes = transitions(data.episode_ends), data.episode_index()
    z, actions = model.infer(data), model.decoder.actions
    decoded = actions.apply(model.decoder.decode(z))
    done = actions.apply(data.actions) if data.actions.shape[1] else np.zeros_like(decoded)
    own, known = (mask[episodes[rows]] for mask in (seen.carries_actions(), data.carries_actions()))
    tested = rows[known & ~own] if (known & ~own).any() else rows[own]
    space, found = model.decoder.space, []
    names = [f"action {d}" for d in range(decoded.shape[1])] if space is None else space.names()
    for d, name in enumerate(names):
        left = ((decoded[tested, d] - done[tested, d]) ** 2).mean()
        probe = linear_probe(z[rows[own]], done[rows[own]][:, [d]], z[tested], done[tested][:, [d]])
        values = {"error": float(left), "variance": float(done[tested, d].var()), "probe": probe}
        found.append({"name": name, **values})
    some = np.unique(np.linspace(0, len(rows) - 1, DRAWN).round().astype(np.int64))
    centred = z[rows].astype(np.float64) - z[rows].mean(0, dtype=np.float64)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :2]
    xy = np.pad(centred[some] @ axes, ((0, 0), (0, 2 - axes.shape[1])))
    return found, {
        "xy": xy.astype(np.float32),
        "decoded": decoded[rows[some]],
        "done": done[rows[some]],
        "known": known[some].astype(np.uint8),
        "labelled": own[some].astype(np.uint8),
    }


@torch.inference_mode()
def reconstruction_error(model: LatentActionModel, data: Demonstrations, rows: IntArray) -> tuple[float, float]:
    """Mean squared error of the predicted next observation, and of the last one in its place."""
    seen, steps = model.observations(data), around(data.episode_ends, model.config.context)
    device = next(model.dynamics.parameters()).device
    sums = np.zeros(2)
    for first in range(0, len(rows), BATCH):
        inputs = as_inputs(torch.from_numpy(seen[steps[rows[first : first + BATCH]]]).to(device))
        context, following = inputs[:, :-1], inputs[:, -1]
        predicted = model.dynamics.predict(context, model.dynamics.infer(inputs))
        sums += [float(model.dynamics.error(one, following)) * len(following) for one in (predicted, context[:, -1])]
    reconstruction, copy = sums / len(rows)
    return float(reconstruction), float(copy)


def linear_probe(z: FloatArray, actions: FloatArray, tested_z: FloatArray, tested: FloatArray) -> float:
    """R^2 on the tested pairs of a ridge regression of actions on z, averaged over dimensions that vary."""
    scale = MinMax.fit(z)
    inputs, queries = (np.c_[scale.apply(values), np.ones(len(values))].astype(np.float64) for values in (z, tested_z))
    gram = inputs.T @ inputs
    weights = np.linalg.solve(gram + RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram)), inputs.T @ actions)
    left = ((queries @ weights - tested) ** 2).mean(axis=0)
    spread = tested.var(axis=0)
    varied = spread > 0
    return float((1 - left[varied] / spread[varied]).mean()) if varied.any() else 0.0
