"""What a run is about: its settings, its demonstrations and the images that its encoder sees.

Pre-training, heads, probes and tables read them here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from classact.data.images import frames_digest
from classact.data.readers import EMBEDDED, first_episodes, last_episodes, read_demonstrations
from classact.data.types import Demonstrations
from classact.errors import ConfigError
from classact.models.encoders import EncoderConfig
from classact.policies import RetrievalConfig, SceneLatents, StateLatents
from classact.run.config import FramesConfig, RunConfig
from classact.run.folder import Run
from classact.run.frames import aspect, needs_rendering, prepare_frames
from classact.sims import SIMULATORS, SimulatorSpec, simulator_spec
from classact.sims.versions import check_language, check_versions
from classact.utils.codec import first_difference, to_json, without
from classact.utils.progress import progress_bar, teller

logger = logging.getLogger(__name__)

SAME = ("fingerprint", "schema", "images")
"""What a run's card says of its data that must stay as it is."""

STATE_RETRIEVAL = RetrievalConfig(k=8, temperature=0.0002)
"""For the true state as latent: few neighbours, sharply weighted, found best on the human demonstrations."""


def lie_beside(run: Run, settings: RunConfig) -> dict[str, str]:
    """Where data and layout lie, seen from a run's folder."""
    root = run.root.resolve()
    places = {"data": settings.data, "layout": settings.layout}
    paths = {name: path for name, path in places.items() if path is not None and path not in EMBEDDED}
    return {name: os.path.relpath(path, root) for name, path in paths.items() if Path(path).anchor == root.anchor}


class RunData:
    """The demonstrations of a run and the images that its encoder sees, read once.

    Args:
        source: a path in a known format, or an embedded name.
        episodes: only the first so many.
        heldout: the last so many of these are kept apart.
        frames: which images.
        encoder: whose cameras and image size are prepared.
        layout: see :class:`classact.run.config.RunConfig`.
        quiet: no progress bars.
    """

    def __init__(
        self,
        source: str,
        episodes: int | None,
        heldout: int,
        frames: FramesConfig,
        encoder: EncoderConfig,
        *,
        layout: str | None = None,
        quiet: bool = False,
    ) -> None:
        self.layout = layout
        self.source, self.episodes, self.held, self.config = source, episodes, heldout, frames
        self.encoder, self.quiet = encoder, quiet
        self._recorded: Demonstrations | None = None
        self._seen: Demonstrations | None = None

    @staticmethod
    def of_run(settings: RunConfig, encoder: EncoderConfig | None = None, *, quiet: bool = False) -> RunData:
        """Those of a run with these settings, for an encoder; None: for its own."""
        return RunData(
            settings.data,
            settings.episodes,
            settings.heldout,
            settings.frames,
            encoder or settings.pretrain.encoder,
            layout=settings.layout,
            quiet=quiet,
        )

    def check_unchanged(self, run: Run) -> None:
        """Refuse data that are others than those that a run's encoder was learned on.

        Raises:
            ConfigError: naming the first difference.
        """
        if difference := other_data(run.read_config().get("data") or {}, self.card()):
            raise ConfigError(
                f"the data of {run.root} have changed since its encoder was learned: it was {difference}. Bring "
                f"them back, or start another run."
            )

    def recorded(self) -> Demonstrations:
        """All of them as recorded.

        Raises:
            ConfigError: nothing would be left to learn from, the simulator cannot render the states, or embeds
                instructions otherwise.
        """
        if self._recorded is None:
            self._recorded = read_demonstrations(self.source, episodes=self.episodes, layout=self.layout)
            if self.held >= len(self._recorded):
                raise ConfigError(
                    f"{self.held} of {len(self._recorded)} demonstrations are to be held out; hold out at most "
                    f"{len(self._recorded) - 1}."
                )
            self._check(self._recorded)
        return self._recorded

    def _check(self, data: Demonstrations) -> None:
        """Whether there are images for the encoder, and the simulator can draw those that it is to draw."""
        rendered = [camera for camera in self.encoder.cameras if needs_rendering(data, camera, self.config)]
        if not rendered and not data.versions:
            return
        spec = simulator_spec(self.config.simulator)
        if rendered and data.states is not None and data.states.shape[1] != spec.state_dim:
            raise ConfigError(
                f"{data.name} ({data.source}) holds states of {data.states.shape[1]} dimensions"
                f"{f' of simulator {data.simulator!r}' if data.simulator else ''}, but simulator {spec.name!r}, which "
                f"is to render them, has states of {spec.state_dim}. {own_simulator(data.simulator, spec.name)}"
            )
        check_language(data.versions, spec, f"{data.name} ({data.source})")
        if warning := check_versions(data, spec, rendered=bool(rendered)):
            logger.warning("%s", warning)

    def card(self) -> dict[str, Any]:
        """What a run's folder remembers of its data. The images are those recorded ones that the encoder sees."""
        data = self.recorded()
        used = [camera for camera in self.encoder.cameras if not needs_rendering(data, camera, self.config)]
        return {
            "name": data.name,
            "source": data.source,
            "episodes": len(data),
            "steps": data.num_steps,
            "heldout": self.held,
            "image_size": self.encoder.image_size,
            "schema": to_json(data.schema),
            "simulator": data.simulator,
            "versions": dict(data.versions),
            "fingerprint": data.fingerprint(),
            "images": {camera: frames_digest(data.images[camera]) for camera in used},
        }

    def encoder_config(self) -> EncoderConfig:
        """The encoder's settings, with the shape of the images that it learns from."""
        seen = aspect(self.recorded(), self.encoder.cameras, self.config)
        return replace(self.encoder, aspect=seen)

    def prepare(self) -> None:
        """Make the images that are not in the store yet."""
        self._all_frames()

    def _all_frames(self) -> Demonstrations:
        if self._seen is None:
            data, encoder = self.recorded(), self.encoder
            with progress_bar("prepare images", quiet=self.quiet) as bar:
                self._seen = prepare_frames(
                    data, encoder.cameras, encoder.image_size, self.config, bar, say=teller(quiet=self.quiet)
                )
        return self._seen

    def states(self) -> Demonstrations:
        """Those that are learned from, as recorded."""
        data = self.recorded()
        return first_episodes(data, len(data) - self.held)

    def frames(self) -> Demonstrations:
        """Those that are learned from, with the images that the encoder trains on."""
        data = self._all_frames()
        return first_episodes(data, len(data) - self.held)

    def heldout(self) -> Demonstrations | None:
        """Those that are kept apart, with images; None where there are none."""
        if self.held == 0:
            return None
        return last_episodes(self._all_frames(), self.held)


def state_latents(data: Demonstrations, spec: SimulatorSpec) -> SceneLatents | StateLatents:
    """The true simulator state as latent.

    Raises:
        ConfigError: the simulator says neither where objects are nor how far its world extends.
    """
    if spec.objects:
        return SceneLatents.fit(data, spec.objects)
    if spec.world is None:
        raise ConfigError(
            f"simulator {spec.name!r} names neither objects nor an extent of its world, one of which retrieval by "
            f"state needs. Use the learned encoder."
        )
    low, high = spec.world
    return StateLatents((low + high) / 2, (high - low) / 2, spec.state_angles)


def other_data(known: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """What of :data:`SAME` differs between two cards of data, with both values; None where nothing does, or one lacks
    it."""
    for key in SAME:
        if key in known and key in found:
            # Which other views there are decides nothing.
            before, now = (without(card[key], "cameras") for card in (known, found))
            if difference := first_difference(before, now, f"data.{key}"):
                return difference
    return None


def own_simulator(recorded: str, asked: str) -> str:
    """Advice: which --simulator goes with data that declare ``recorded``, where ``asked`` does not."""
    if recorded and recorded != asked:
        return f"Leave --simulator out, or name that one: --simulator {recorded}."
    return f"Name their own: --simulator NAME, one of {', '.join(SIMULATORS)}."
