"""A run's settings, its demonstrations and the images of its encoder, for pre-training, heads, probes and tables."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from classact.data.actions import ActionSpace
from classact.data.images import frames_digest
from classact.data.language import recorded_source
from classact.data.lowdim import LowDim
from classact.data.readers import first_episodes, last_episodes, read_demonstrations
from classact.data.readers.selection import chosen_episodes
from classact.data.types import Demonstrations, FloatArray
from classact.errors import CheckpointError, ConfigError
from classact.evaluation.actions import HeldOut
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.encoders.image import pretrained_config
from classact.models.latent_actions import LatentActionModel
from classact.models.latent_actions.decoder import ActionDecoder
from classact.policies import ImageLatents, RetrievalConfig, SceneLatents, StateLatents
from classact.run.config import RunConfig
from classact.run.folder import Run
from classact.run.frames import aspect, needs_rendering, prepare_frames
from classact.run.presets import control_rate
from classact.run.stand_ins import ACTIONS, STAND_INS
from classact.sims import NO_SIMULATOR, SIMULATORS, SimulatorSpec, simulator_spec
from classact.sims.versions import check_language, check_versions
from classact.utils.codec import first_difference, to_json, without
from classact.utils.progress import progress_bar, teller
from classact.utils.ranks import Ranks
from classact.utils.storage import CHECKSUMS, sha256_file

logger = logging.getLogger(__name__)

MODELS = {"latent_actions": "latent action model", "features": "encoder of features"}
"""Settings that name a saved model's folder, whose content a run's metadata record by its digest."""
SAME = ("fingerprint", "schema", "images", *MODELS)
"""What a run's metadata say of its data that must stay as it is."""
STATE_RETRIEVAL = RetrievalConfig(k=8, temperature=0.0002)
"""For the true state as latent: few neighbours, sharply weighted, found best on the human demonstrations."""


def lie_beside(run: Run, settings: RunConfig) -> dict[str, str]:
    """Paths of data, layout, latent action model and features' encoder relative to a run's folder."""
    root = run.root.resolve()
    one = len(settings.sources) == 1
    places = {name: getattr(settings, name) for name in ("layout", *MODELS)}
    places |= {"data" if one else f"data {number}": path for number, path in enumerate(settings.sources)}
    paths = {name: path for name, path in places.items() if path is not None and Path(path).is_absolute()}
    return {name: os.path.relpath(path, root) for name, path in paths.items() if Path(path).anchor == root.anchor}


class RunData:
    """The demonstrations of a run and the images that its encoder sees (or those of ``encoder``), read once."""

    def __init__(self, settings: RunConfig, encoder: EncoderConfig | None = None, *, quiet: bool = False) -> None:
        self.settings, self.quiet = settings, quiet
        self.encoder = encoder or settings.pretrain.encoder
        self.held, self.config = settings.heldout, settings.frames

    def check_unchanged(self, run: Run) -> None:
        """Refuse data other than those that a run's encoder was trained on; names the first difference."""
        known, found = run.read_config().get("data") or {}, self.metadata()
        if "images" in known:  # an encoder of other cameras may be asked: those are compared that both see
            both = known["images"].keys() & found["images"].keys()
            known, found = (
                one | {"images": {camera: one["images"][camera] for camera in both}} for one in (known, found)
            )
        if difference := other_data(known, found):
            raise ConfigError(
                f"the data of {run.root} have changed since its encoder was learned: it was {difference}. Bring "
                f"them back, or start another run."
            )

    @cached_property
    def recorded(self) -> Demonstrations:
        """All of them as recorded.

        Raises:
            ConfigError: nothing would be left to train on, the simulator cannot render the states, or embeds
                instructions otherwise.
        """
        settings = self.settings
        chosen: dict[str, Any] = {"episodes": settings.episodes, "layout": settings.layout, "fps": settings.fps}
        if len(settings.sources) > 1:
            cameras, keys = self.encoder.cameras, settings.keys
            if self.latent is not None:
                camera = self.latent.config.camera
                cameras += () if camera is None or camera in cameras else (camera,)
                keys = None if keys is None else tuple(dict.fromkeys((*keys, *self.latent.keys)))
            chosen |= {"weights": settings.data_weights, "heldout": self.held, "cameras": cameras, "keys": keys}
        data = read_demonstrations(settings.data, **chosen)
        if self.held >= len(data):
            raise ConfigError(
                f"{self.held} of {len(data)} demonstrations are to be held out; hold out at most {len(data) - 1}."
            )
        if settings.labelled is not None:
            # Counted through the data sets in their order, of each of which some stand at the end, held out.
            order, numbers = data.set_by_set(), chosen_episodes(settings.labelled, len(data), data.source)
            data = data.only_labelled(order[numbers].tolist())
        self._check_actions(data)
        self._check(data)
        return data if self.config.renderings == 1 else self._repeated(data)

    def _repeated(self, data: Demonstrations) -> Demonstrations:
        """As many times as they are rendered, the held-out ones once, as the last.

        Raises:
            ConfigError: a camera that is not rendered, or batches that cannot hold each state in all renderings.
        """
        times, batch = self.config.renderings, self.settings.pretrain.batch_size
        seen = [camera for camera in self.encoder.cameras if not needs_rendering(data, camera, self.config)]
        if seen:
            raise ConfigError(
                f"{data.name} ({data.source}): {times} renderings asked, but images of camera {seen[0]!r} are taken as "
                f"recorded. Render them from states (--frames rendered), or leave renderings at 1."
            )
        if batch % times:
            raise ConfigError(f"a batch of {batch} images cannot show each state in {times} renderings: no multiple.")
        own, E = list(range(len(data) - self.held)), len(data)
        return data.with_images({}).subset([*(times * own), *range(E - self.held, E)])

    def _check_actions(self, data: Demonstrations) -> None:
        """Refuse to learn from actions that are not there, to act where there are none at all, and to infer latent ones
        from other data.
        """
        settings, known = self.settings, data.carries_actions()
        if self.latent is not None:
            self.latent.check(data.schema, f"{data.name} ({data.source})")
        without = f"{data.name} ({data.source}): {int((~known).sum())} of {len(data)} demonstrations carry no actions"
        if not known.all() and settings.pretrain.objective.needs_actions and settings.learns_from == ACTIONS:
            raise ConfigError(
                f"{without}, which this learns from. Learn latent ones (classact latent-actions) and name them "
                f"(--latent-actions FOLDER), learn from something else that they have (--learn-from), or leave these "
                f"demonstrations out (--episodes)."
            )
        if settings.acts_from == "labelled" and not known[: len(data) - self.held].any():
            raise ConfigError(
                f"{without}{f' ({self.held} are held out)' if self.held else ''}, so nothing says what to do. Name "
                f"some that do, or a latent action model (--latent-actions FOLDER)."
            )

    @cached_property
    def latent(self) -> LatentActionModel | None:
        """What gives latent actions, where a model is named."""
        folder = self.settings.latent_actions
        return None if folder is None else LatentActionModel.load(folder)

    @cached_property
    def latent_actions(self) -> FloatArray | None:
        """(N, Z) of all demonstrations, where a model is named."""
        if self.latent is None:
            return None
        # As recorded, which is what it was trained on, whatever the encoder sees of it.
        camera = self.latent.config.camera
        return self.latent.infer(self.recorded if camera is None or camera in self.recorded.images else self._drawn)

    def features(self) -> FloatArray:
        """(N, F) of all demonstrations, by the frozen encoder that is named."""
        assert self.settings.features is not None
        frames = RunData(self.settings, pretrained_config(self.settings.features), quiet=self.quiet)._drawn
        encoder = ImageEncoder.from_pretrained(self.settings.features)
        return ImageLatents(encoder, LowDim.fit(frames, ())).demonstrations(frames)

    @cached_property
    def _stand_ins(self) -> FloatArray:
        return STAND_INS[self.settings.learns_from].make(self)

    def learned(self, data: Demonstrations) -> Demonstrations:
        """What the representation is learned from: the first demonstrations, with what stands for actions
        (``learn_from``) in their place.
        """
        if not self.settings.pretrain.objective.needs_actions:
            return data
        if self.settings.learns_from == ACTIONS:  # what was done, also where decoded ones are executed
            return data if self.settings.acts_from == "labelled" else self._as_recorded(data)
        space = None
        if STAND_INS[self.settings.learns_from].actions and self.latent is not None:
            space = self.latent.decoder.space
        return _in_their_place(data, self._stand_ins, space)

    def _as_recorded(self, data: Demonstrations) -> Demonstrations:
        return _in_their_place(data, self.recorded.actions, self.recorded.schema.actions)

    def cloned(self, data: Demonstrations) -> tuple[Demonstrations, ActionDecoder | None]:
        """What heads learn to do: the demonstrations that carry actions, or all with latent ones and their decoder."""
        if self.settings.acts_from == "labelled":
            return data.with_actions(), None
        assert self.latent is not None
        assert self.latent_actions is not None
        return _in_their_place(data, self.latent_actions), self.latent.decoder

    def _executed(self, data: Demonstrations) -> Demonstrations:
        """All demonstrations with the actions that a robot executes (``act_from``)."""
        if self.settings.acts_from == "labelled":
            return data
        assert self.latent is not None
        assert self.latent_actions is not None
        decoder = self.latent.decoder
        return _in_their_place(data, decoder.decode(self.latent_actions), decoder.space)

    def _check(self, data: Demonstrations) -> None:
        """Refuse data without images for the encoder, or that the simulator cannot draw."""
        rendered = [camera for camera in self.encoder.cameras if needs_rendering(data, camera, self.config)]
        if self.config.simulator == NO_SIMULATOR or (not rendered and not data.versions):
            return
        spec = simulator_spec(self.config.simulator)
        if rendered and data.states is not None and data.states.shape[1] != spec.state_dim:
            raise ConfigError(
                f"{data.name} ({data.source}) holds states of {data.states.shape[1]} dimensions"
                f"{f' of simulator {data.simulator!r}' if data.simulator else ''}, but simulator {spec.name!r}, which "
                f"is to render them, has states of {spec.state_dim}. {own_simulator(data.simulator, spec.name)}"
            )
        check_language(recorded_source(data.versions), spec, f"{data.name} ({data.source})")
        if warning := check_versions(data, spec, rendered=bool(rendered)):
            logger.warning("%s", warning)

    def metadata(self) -> dict[str, Any]:
        """Metadata of the data in a run's folder; its images are the recorded ones that the encoder sees."""
        data = self.recorded
        used = [camera for camera in self.encoder.cameras if not needs_rendering(data, camera, self.config)]
        origins = {"sets": [to_json(one) for one in data.origins]} if data.origins else {}
        return {
            "name": data.name,
            "source": data.source,
            **origins,
            "episodes": len(data),
            "steps": data.num_steps,
            "heldout": self.held,
            "image_size": self.encoder.image_size,
            "schema": to_json(data.schema),
            "simulator": data.simulator,
            "versions": dict(data.versions),
            "fingerprint": data.fingerprint(),
            **{name: digest or "" for name, digest in model_digests(self.settings).items()},
            "images": {camera: frames_digest(data.images[camera]) for camera in used},
        }

    def encoder_config(self) -> EncoderConfig:
        """The encoder's settings, with the shape of the training images."""
        return replace(self.encoder, aspect=aspect(self.recorded, self.encoder.cameras, self.config))

    @cached_property
    def _prepared(self) -> Demonstrations:
        return self._executed(self._drawn)

    @cached_property
    def _drawn(self) -> Demonstrations:
        encoder = self.encoder
        with progress_bar("prepare images", quiet=self.quiet) as bar:
            return prepare_frames(
                self.recorded, encoder.cameras, encoder.image_size, self.config, bar, say=teller(quiet=self.quiet)
            )

    def states(self) -> Demonstrations:
        """The training part, as recorded."""
        return first_episodes(self._executed(self.recorded), len(self.recorded) - self.held)

    def frames(self, ranks: Ranks | None = None) -> Demonstrations:
        """The training part, with the images that the encoder trains on."""
        if ranks is not None:
            # One rank makes what is missing in the store; the others find it there.
            ranks.on_first(lambda: len(self._prepared))
        return first_episodes(self._prepared, len(self._prepared) - self.held)

    def heldout(self) -> Demonstrations | None:
        """The held-out part, with images; None where there is none."""
        return last_episodes(self._prepared, self.held) if self.held else None

    def held_out(self, steps: int) -> HeldOut:
        """Timesteps of the held-out part, whose next ``steps`` actions policies are compared with.

        They are what was done, as recorded; where none of these demonstrations carries actions, decoded ones, if
        policies act from such.
        """
        data, recorded = last_episodes(self._prepared, self.held), last_episodes(self.recorded, self.held)
        if recorded.carries_actions().any():
            data = replace(data, actions=recorded.actions, labelled=recorded.labelled)
        elif self.settings.acts_from == "decoded":
            logger.warning(
                "no held-out demonstration carries actions: policies are compared with what latent ones are decoded to"
            )
        training = first_episodes(self.recorded, len(self.recorded) - self.held)
        # What was done is of its own range; what latent actions are decoded to may be of a smaller one.
        done = training if training.carries_actions().any() else None
        return HeldOut.of(data, self.frames().with_actions(), steps, done=done)


def state_latents(data: Demonstrations, spec: SimulatorSpec) -> SceneLatents | StateLatents:
    """The true simulator state as latent: objects' poses, or positions scaled by the world's extent."""
    if spec.objects:
        return SceneLatents.fit(data, spec.objects)
    if spec.world is None:
        raise ConfigError(
            f"simulator {spec.name!r} names neither objects nor an extent of its world, one of which retrieval by "
            f"state needs. Use the learned encoder."
        )
    low, high = spec.world
    return StateLatents((low + high) / 2, (high - low) / 2, spec.state_angles)


def _in_their_place(data: Demonstrations, values: FloatArray, space: ActionSpace | None = None) -> Demonstrations:
    """The first of all demonstrations with the first of ``values`` (N, Z) in the place of actions; where they are of no
    action space, each dimension is a number by itself.
    """
    schema = replace(data.schema, actions=space)
    return replace(data, actions=values[: data.num_steps], schema=schema, labelled=None)


def model_digests(settings: RunConfig) -> dict[str, str | None]:
    """What the folders of :data:`MODELS` hold, wherever they lie; None where none is named, or it is gone."""
    return {name: folder_digest(getattr(settings, name)) for name in MODELS}


def folder_digest(folder: str | Path | None) -> str | None:
    """What a checksummed folder holds; None where none is named, or there is none."""
    sums = None if folder is None else Path(folder) / CHECKSUMS
    return sha256_file(sums) if sums is not None and sums.is_file() else None


def check_models(settings: RunConfig) -> None:
    """Raise a CheckpointError where the folder of one of :data:`MODELS` is gone."""
    for name, about in MODELS.items():
        folder = getattr(settings, name)
        if folder is not None and not Path(folder).is_dir():
            raise CheckpointError(
                f"the {about} {folder} does not exist. Bring it back, or name where it lies now "
                f"(--{name.replace('_', '-')} FOLDER)."
            )


def run_rate(run: Run) -> tuple[float | None, str]:
    """Steps per second of the data that a run learned from, None where it is not known; and their name."""
    settings, data = run.settings(), run.read_config().get("data") or {}
    where = f"{data.get('name', settings.data)} ({data.get('source', settings.data)})"
    fps = (data.get("schema") or {}).get("fps")
    return control_rate(settings.frames.simulator) if fps is None else float(fps), where


def other_data(known: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """The first of :data:`SAME` that differs between the metadata of two data sets, with both values; None where all
    agree.
    """
    pairs = zip(known.get("sets", ()), found.get("sets", ()), strict=False)
    for number, (before, now) in enumerate(pairs):  # says which of several data sets it is
        if before["fingerprint"] != now["fingerprint"]:
            where = f"data.sets[{number}] ({now['source']}): fingerprint"
            return first_difference(before["fingerprint"], now["fingerprint"], where)
    for key in SAME:
        # Runs of before there were these models have none.
        if key in found and (key in known or key == "latent_actions"):
            # Further views do not matter, and fps was not always recorded.
            before, now = (without(metadata.get(key, ""), "cameras", "fps") for metadata in (known, found))
            if difference := first_difference(before, now, f"data.{key}"):
                return difference
    return None


def own_simulator(recorded: str, asked: str) -> str:
    """Advice on which --simulator goes with data that declare ``recorded``, where ``asked`` does not."""
    if recorded and recorded != asked:
        return f"Leave --simulator out, or name that one: --simulator {recorded}."
    return f"Name their own: --simulator NAME, one of {', '.join(SIMULATORS)}."
