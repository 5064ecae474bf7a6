"""The images that an encoder trains on: recorded or re-rendered, at its size, memory-mapped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from classact.data.images import (
    ArrayImages,
    Entry,
    ImageMap,
    Images,
    ImageSource,
    ImageStore,
    JoinedImages,
    Progress,
    resized,
    unfinished,
)
from classact.data.types import Demonstrations
from classact.errors import DataError, choose
from classact.run.config import FramesConfig
from classact.sims import NO_SIMULATOR, SIMULATORS, make_simulator, simulator_spec
from classact.sims.rendering import render_states
from classact.sims.shifts import parse_shift
from classact.sims.versions import installed_versions
from classact.utils.codec import to_json
from classact.utils.machine import cores

DEFAULT_CAMERA = "top"


def _told(data: Demonstrations) -> str:
    """What else helps where no images were found."""
    if data.images:
        return ""
    assumed = data.schema.assumption.partition(";")[0]
    return ", or declare images or videos in a layout (docs/data.md)" + (f"; so far, {assumed}" if assumed else "")


def needs_rendering(data: Demonstrations, camera: str, config: FramesConfig) -> bool:
    """Whether images are rendered from states rather than taken from the recording.

    Raises:
        DataError: neither is possible.
        ConfigError: unknown shift or simulator.
    """
    if config.source not in ("auto", "recorded", "rendered"):
        raise DataError(choose("frames source", config.source, ("auto", "recorded", "rendered")))
    recorded = camera in data.images
    if not recorded and (config.source == "recorded" or data.states is None):
        without = "" if config.source == "recorded" else ", and no simulator states to render it from"
        raise DataError(
            f"{data.name} ({data.source}) holds no images of camera {camera!r}{without}; recorded are "
            f"{sorted(data.images) or 'no cameras at all'}. Choose a recorded camera, or data with states{_told(data)}."
        )
    if config.simulator == NO_SIMULATOR:
        if not recorded:
            raise DataError(
                f"{data.name} ({data.source}) holds no images of camera {camera!r}, and no simulator is named that "
                f"could render them; recorded are {sorted(data.images) or 'no cameras at all'}. Choose a recorded "
                f"camera, or name the simulator of these states (--simulator NAME){_told(data)}."
            )
        return False
    shown = data.images_shift or SIMULATORS[config.simulator].plain
    same = recorded and parse_shift(shown) == parse_shift(config.shift)
    if same and data.simulator and data.states is not None:
        # An image drawn large and scaled down is smoother than one drawn small.
        same = data.images[camera].shape[1:3] == (config.render_size, config.render_size)
    render = config.source == "rendered" or (config.source == "auto" and not same)
    if render and data.states is None:
        raise DataError(
            f"{data.name} ({data.source}) holds no simulator states, so shift {config.shift!r} (source "
            f"{config.source!r}) cannot be rendered from it; recorded are images of {sorted(data.images)}. Use shift "
            f"{shown!r} with source 'auto', or source 'recorded'."
        )
    if render:
        cameras = simulator_spec(config.simulator).cameras
        if camera not in cameras:
            raise DataError(
                f"{data.name} ({data.source}) holds no usable images of camera {camera!r} and simulator "
                f"{config.simulator!r} cannot render it: recorded are {sorted(data.images) or 'no cameras at all'}, "
                f"rendered can be {list(cameras)}. Choose one of these cameras."
            )
    return render


def prepare_frames(
    data: Demonstrations,
    cameras: Sequence[str],
    size: int,
    config: FramesConfig,
    progress: Progress | None = None,
    store: ImageStore | None = None,
    say: Callable[[str], None] | None = None,
) -> Demonstrations:
    """The demonstrations with the images of some cameras at ``size`` x ``size``, from the image store or made now.

    Args:
        progress: called with (steps done, in all) over all cameras; not called where the store has the images.
        say: told, beforehand, the disk space of images that are to be made.

    Raises:
        DataError: no such camera, or no states to render from.
        StorageError: no space for all of them.
    """
    store = store or ImageStore()
    images: dict[tuple[str, int], Images] = {}  # of each camera, those of each data set that were joined
    stored: dict[tuple[str, int], Entry] = {}
    missing: dict[tuple[str, int], Entry] = {}
    for number, camera in enumerate(cameras):
        before = number * data.num_steps
        for part, source in enumerate(_sources(data, camera, config)):

            def report(done: int, _: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + done, len(cameras) * data.num_steps)

            entry = _rendered(data, camera, size, config, report) if source is None else _recorded(source, size, report)
            if not isinstance(entry, Entry):
                images[camera, part] = entry
            elif (found := store.get(entry)) is not None:
                images[camera, part] = found
            else:
                missing[camera, part] = entry
            if isinstance(entry, Entry):
                stored[camera, part] = entry
            before += data.num_steps if source is None else len(source)
    if missing:
        needed = sum(entry.nbytes for entry in missing.values())
        free = store.free_space(needed)
        if say is not None:
            counts = Counter(entry.shape for entry in missing.values())
            parts = [f"{n} x ({count:,} x {size} x {size} x 3)" for (count, *_), n in counts.items()]
            say(
                f"images to prepare: {' + '.join(parts)} = {needed / 2**20:,.0f} MiB in {store.root}, where "
                f"{free / 2**20:,.0f} MiB are free"
            )
    images |= {key: store.get_or_create(entry) for key, entry in missing.items()}
    for (camera, part), entry in stored.items():
        store.note_use(entry, data.origins[part].source if part < len(data.origins) else data.source, camera)
    joined: dict[str, Images] = {}
    for camera in cameras:
        own = [found for (name, _), found in sorted(images.items(), key=lambda one: one[0][1]) if name == camera]
        recorded = data.images.get(camera)
        pieces = recorded.pieces if isinstance(recorded, JoinedImages) and len(own) > 1 else None
        joined[camera] = own[0] if pieces is None else JoinedImages(own, pieces)
    return data.with_images(joined, shift=config.shift)


def aspect(data: Demonstrations, cameras: Sequence[str], config: FramesConfig) -> float | tuple[float, ...]:
    """Width / height of the images before they are resized to squares, 1 for rendered ones; one for each camera where
    they differ.
    """
    found = dict.fromkeys(cameras, 1.0)
    for camera in cameras:
        if not needs_rendering(data, camera, config):
            height, width = data.images[camera].shape[1:3]
            found[camera] = width / height
    same = max(found.values()) <= 1.02 * min(found.values())
    return found[cameras[0]] if same else tuple(found.values())


def _sources(data: Demonstrations, camera: str, config: FramesConfig) -> Sequence[Images | None]:
    """The recorded images of a camera, of each data set that was joined by themselves; None: they are rendered."""
    if needs_rendering(data, camera, config):
        return [None]
    recorded = data.images[camera]
    return recorded.sources if isinstance(recorded, JoinedImages) else [recorded]


def _recorded(recorded: Images, size: int, progress: Progress) -> Entry | Images:
    """What is to be in the store, or images that have that size already."""
    if isinstance(recorded, ImageSource):
        return resized(recorded, size, progress)
    return recorded if recorded.shape[1:3] == (size, size) else resized(ArrayImages(recorded), size, progress)


def _rendered(data: Demonstrations, camera: str, size: int, config: FramesConfig, progress: Progress) -> Entry:
    """What is to be in the store, drawn from states."""
    assert data.states is not None
    states, ends = data.states, data.episode_ends
    decides = ("simulator", "shift", "render_size", "seed")
    key: dict[str, Any] = {"kind": "rendered", "data": data.fingerprint()}
    key |= {name: getattr(config, name) for name in decides}
    if camera != DEFAULT_CAMERA:  # keeps stores valid that were filled before there were several views
        key["camera"] = camera
    simulator = make_simulator(config.simulator, image_size=config.render_size, shift=config.shift)
    simulator.close()
    if packages := simulator.spec.packages:  # without any (Push-T), classact itself draws
        key["packages"] = installed_versions(packages)
        key["look"] = to_json(getattr(simulator, "look", None))

    def render(out: ImageMap) -> None:
        render_states(
            config.simulator,
            states,
            ends,
            image_size=config.render_size,
            shift=config.shift,
            seed=config.seed,
            out=out,
            camera=camera,
            workers=config.workers or cores(),
            progress=progress,
            done=unfinished(out),
        )

    return Entry(key, (data.num_steps, size, size, 3), render, resumes=True)
