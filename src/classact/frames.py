"""The images that an encoder trains on: recorded or re-rendered, resized once, memory-mapped."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from classact.errors import DataError, choose
from classact.images import ImageStore, resize_images, sample_digest
from classact.sims import make_simulator
from classact.sims.rendering import render_states
from classact.types import Demonstrations, ImageArray

Progress = Callable[[int, int], None]
_BLOCK = 1024


@dataclass(frozen=True)
class FramesConfig:
    """Which images of the demonstrations are used.

    Attributes:
        source: "auto": recorded images where there are any and the shift is the recorded one, else rendered;
            "recorded"; "rendered".
        simulator: what renders, from the demonstrations' states.
        shift: visual shift to render under; any but the simulator's first one means rendering.
        render_size: side in pixels at which the simulator draws, as at evaluation time.
        seed: of the episodes' appearances.
        workers: rendering processes; 0 takes one per core.
    """

    source: str = "auto"
    simulator: str = "pusht"
    shift: str = "fixed-color"
    render_size: int = 96
    seed: int = 0
    workers: int = 0


def needs_rendering(data: Demonstrations, camera: str, config: FramesConfig) -> bool:
    """Whether images are drawn from states rather than taken from the recording.

    Raises:
        DataError: neither is possible.
        ConfigError: the simulator does not know the shift, or does not draw at that size.
    """
    if config.source not in ("auto", "recorded", "rendered"):
        raise DataError(choose("frames source", config.source, ("auto", "recorded", "rendered")))
    recorded = camera in data.images
    if not recorded and (config.source == "recorded" or data.states is None):
        without = "" if config.source == "recorded" else ", and no simulator states to render it from"
        raise DataError(
            f"{data.name} ({data.source}) holds no images of camera {camera!r}{without}; recorded are "
            f"{sorted(data.images) or 'no cameras at all'}. Choose a recorded camera, or data with states."
        )
    # Recordings are taken to show the plain appearance; a shift can only be drawn.
    render = config.source == "rendered" or (config.source == "auto" and (not recorded or "rand" in config.shift))
    if render and data.states is None:
        raise DataError(
            f"{data.name} ({data.source}) holds no simulator states, so shift {config.shift!r} (source "
            f"{config.source!r}) cannot be rendered from it; recorded are images of {sorted(data.images)}. Use shift "
            f"'fixed-color' with source 'auto', or source 'recorded'."
        )
    if render:
        simulator = make_simulator(config.simulator, image_size=config.render_size, shift=config.shift)
        cameras = simulator.spec.cameras
        simulator.close()
        if camera not in cameras:
            raise DataError(
                f"{data.name} ({data.source}) holds no usable images of camera {camera!r} and simulator "
                f"{config.simulator!r} cannot render it: recorded are {sorted(data.images) or 'no cameras at all'}, "
                f"rendered can be {list(cameras)}. Choose one of these cameras."
            )
    return render


def prepare_frames(
    data: Demonstrations,
    camera: str,
    size: int,
    config: FramesConfig,
    progress: Progress | None = None,
    store: ImageStore | None = None,
) -> Demonstrations:
    """The demonstrations with one camera's images at ``size`` x ``size``, from the image store or made now.

    Args:
        data: demonstrations.
        camera: which camera.
        size: the encoder's image_size.
        config: recorded or rendered, and how.
        progress: called with (steps done, in all); not called where the store has the images.
        store: where images are kept.

    Raises:
        DataError: no such camera, or no states to render from.
    """
    store = store or ImageStore()
    shape = (data.num_steps, size, size, 3)
    if needs_rendering(data, camera, config):
        assert data.states is not None
        states, ends = data.states, data.episode_ends
        key = {
            "kind": "rendered",
            "data": data.fingerprint(),
            "simulator": config.simulator,
            "shift": config.shift,
            "render_size": config.render_size,
            "seed": config.seed,
        }

        def render(out: ImageArray) -> None:
            render_states(
                config.simulator,
                states,
                ends,
                image_size=config.render_size,
                shift=config.shift,
                seed=config.seed,
                out=out,
                workers=config.workers or multiprocessing.cpu_count(),
                progress=progress,
            )

        return data.with_images({camera: store.get_or_create(key, shape, render)})

    recorded = data.images[camera]
    if recorded.shape[1:3] == (size, size):
        return data.with_images({camera: recorded})
    # Not where they come from: a recording that was made again under the same path has other images.
    key = {"kind": "resized", "native": list(recorded.shape), "images": sample_digest(recorded)}

    def resize(out: ImageArray) -> None:
        for start in range(0, len(recorded), _BLOCK):
            out[start : start + _BLOCK] = resize_images(np.asarray(recorded[start : start + _BLOCK]), size)
            if progress is not None:
                progress(min(start + _BLOCK, len(recorded)), len(recorded))

    return data.with_images({camera: store.get_or_create(key, shape, resize)})
