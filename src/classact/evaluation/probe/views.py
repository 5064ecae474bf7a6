"""The same states, drawn in two ways: whether a representation recognises them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from classact.data.images import resize_images
from classact.data.types import Demonstrations, ImageArray, IntArray
from classact.errors import ClassactError
from classact.evaluation.probe.latents import ProbeConfig, Progress
from classact.evaluation.probe.metrics import episode_mean, view_matches
from classact.policies import ImageLatents
from classact.policies.latents import unit
from classact.sims import NO_SIMULATOR, Simulator, make_simulator
from classact.sims.rendering import appearance_seed
from classact.sims.shifts import is_plain

TOLERANCE = 2  # steps within which a state of the same episode counts as nearly the same
_STREAM = 5  # of random numbers, after those of probe/latents.py
_FIRST, _SECOND = 0x70726F62, 0x70726F63  # seeds of the drawings' appearances, far from the small ones of trainings


@dataclass(frozen=True)
class Drawing:
    """How states are drawn: simulator (registry name), visual shift, and the images' side."""

    simulator: str
    shift: str
    render_size: int

    def start(self, cameras: Sequence[str]) -> Simulator:
        """The simulator, with these views."""
        return make_simulator(self.simulator, image_size=self.render_size, shift=self.shift, cameras=cameras)


def reason_against(data: Demonstrations, latents: Any, drawing: Drawing) -> str | None:
    """Why states cannot be drawn in two ways for the encoder of a policy's latents; None where they can."""
    if not isinstance(latents, ImageLatents):
        return "these latents read no images"
    if data.states is None:
        return f"{data.name} holds no simulator states that could be drawn again"
    if is_plain(drawing.shift):
        return f"shift {drawing.shift!r} draws every state alike; name one that changes it with --shift"
    encoder = latents.encoder.config
    if drawing.simulator == NO_SIMULATOR:
        return "there is no simulator that could draw states again"
    if max(abs(aspect - 1) for aspect in encoder.aspects) > 0.02:
        shapes = ", ".join(f"{aspect:.2f}" for aspect in dict.fromkeys(encoder.aspects))
        return f"the encoder reads images of width / height {shapes}, and simulators draw squares"
    try:
        made = drawing.start(encoder.cameras)
    except ClassactError as error:
        return str(error)
    made.close()
    if data.states.shape[1] != made.spec.state_dim:
        return (
            f"the states of {data.name} have {data.states.shape[1]} dimensions, those of simulator "
            f"{drawing.simulator!r} {made.spec.state_dim}"
        )
    return None


def draw_rows(
    data: Demonstrations, rows: IntArray, cameras: Sequence[str], size: int, drawing: Drawing, seed: int
) -> dict[str, ImageArray]:
    """Images camera -> (M, size, size, 3) uint8 of the steps ``rows`` (M,), ascending, drawn from their states.

    They are resized as in :func:`classact.run.frames.prepare_frames`; each episode has its own appearance, from
    ``seed``.
    """
    assert data.states is not None
    out = {camera: np.empty((len(rows), size, size, 3), np.uint8) for camera in cameras}
    episodes = data.episode_index()
    sim = drawing.start(cameras)
    try:
        shown = -1
        for number, row in enumerate(rows):
            episode = int(episodes[row])
            if episode != shown:
                sim.set_appearance(appearance_seed(seed, episode))
                shown = episode
            sim.set_state(data.states[row], step=int(row) - data.bounds(episode)[0])
            for camera, image in sim.observe().images.items():
                out[camera][number] = resize_images(image[None], size)[0]
    finally:
        sim.close()
    return out


def some_steps(data: Demonstrations, rows: IntArray, images: Mapping[str, ImageArray]) -> Demonstrations:
    """The steps ``rows`` (M,), ascending, as episodes of their own, with images (M, H, W, 3)."""
    episodes, counts = np.unique(data.episode_index()[rows], return_counts=True)
    steps = replace(data, images={}).select(rows, np.cumsum(counts, dtype=np.int64), episodes)
    return replace(steps, images=dict(images))


def probe_views(
    data: Demonstrations,
    candidates: IntArray,
    latents: ImageLatents,
    config: ProbeConfig,
    drawing: Drawing,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """How alike the latents of the same states are, drawn in two ways.

    Args:
        data: with states.
        candidates: steps to take states from.
        latents: encoder and proprioception, which is the same in both drawings.
        config: ``states`` and ``seed``.
        progress: called with (done, total, description).

    Returns plain JSON: "shift", "states", "tolerance" and "representations": name -> metrics.
    """
    rng = config.rng(_STREAM)
    rows = np.sort(rng.choice(candidates, min(config.states, len(candidates)), replace=False))
    encoder = latents.encoder.config
    drawn = []
    for number, seed in enumerate((_FIRST + 2 * config.seed, _SECOND + 2 * config.seed)):
        if progress is not None:
            progress(number, 2, "draw states")
        images = draw_rows(data, rows, encoder.cameras, encoder.image_size, drawing, seed)
        drawn.append(representations(latents, latents.demonstrations(some_steps(data, rows, images))))
    if progress is not None:
        progress(2, 2, "draw states")
    episodes = data.episode_index()[rows]
    steps = rows - (data.episode_ends - data.lengths)[episodes]
    # By chance, any of the states is the nearest.
    near = (episodes[:, None] == episodes) & (np.abs(steps[:, None] - steps) <= TOLERANCE)
    out: dict[str, Any] = {
        "shift": drawing.shift,
        "states": len(rows),
        "tolerance": TOLERANCE,
        "chance": {"same_state": 1 / len(rows), "nearly_same_state": float(near.mean())},
        "representations": {},
    }
    for name in drawn[0]:
        metrics = view_matches(drawn[0][name], drawn[1][name], episodes, steps, TOLERANCE)
        out["representations"][name] = {
            key: episode_mean(values, episodes, config.rng(_STREAM)).to_json() for key, values in metrics.items()
        }
    return out


def representations(latents: Any, z: Any) -> dict[str, Any]:
    """The representations in latents (N, d) of a policy: all of it, and image features alone.

    Features come first, and their direction does not depend on what is appended and scaled with them.
    """
    if not isinstance(latents, ImageLatents):
        return {"latents": z}
    return {"latents": z, "image features": unit(z[:, : latents.encoder.feature_dim])}
