"""The values that travel through classact: frozen, validated, with shapes and units.

Convention throughout: action ``a_t`` is the action taken at observation ``o_t``; it leads to ``o_{t+1}``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.images import ImageArray as ImageArray
from classact.data.images import Images
from classact.data.normalize import MinMax
from classact.data.schema import Schema, check_images
from classact.errors import ConfigError, DataError

FloatArray = NDArray[np.float32]
StateArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def _check_matrix(name: str, array: Any, length: int, dtype: type, where: str) -> None:
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[0] != length:
        raise DataError(
            f"{where}: expected {name} of shape ({length}, D), got {getattr(array, 'shape', type(array).__name__)}. "
            f"Every array must have one row per step."
        )
    if array.dtype != dtype:
        raise DataError(f"{where}: expected {name} of dtype {np.dtype(dtype)}, got {array.dtype}. Convert it first.")
    finite = np.isfinite(array)
    if not finite.all():
        row, column = (int(v) for v in np.argwhere(~finite)[0])
        bad = int((~finite).any(axis=1).sum())
        raise DataError(
            f"{where}: {name}[{row}, {column}] is {array[row, column]}; {bad} of {length} steps hold NaN or infinite "
            f"values. Drop or repair these steps; classact does not guess."
        )


@dataclass(frozen=True)
class Episode:
    """One demonstration of L steps.

    Attributes:
        index: position in the :class:`Demonstrations` it came from.
        actions: (L, D_a) float32, unnormalised, in the simulator's or robot's own units.
        proprioception: (L, D_p) float32, unnormalised.
        states: (L, D_s) float64 full simulator states, or None where none were recorded.
        images: camera name -> (L, H, W, 3) uint8 RGB, a view of the demonstrations'.
    """

    index: int
    actions: FloatArray
    proprioception: FloatArray
    states: StateArray | None = None
    images: Mapping[str, Images] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(frozen=True)
class Origin:
    """One of several data sets that demonstrations were joined from.

    Attributes:
        name, source: as of :class:`Demonstrations`.
        episodes, steps: how many were read.
        chosen: which, as they were asked for.
        fingerprint: of it alone.
        weight: how often its steps are drawn in trainings, relative to those of the others.
    """

    name: str
    source: str
    episodes: int
    steps: int
    fingerprint: str
    chosen: int | str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class ReadWith:
    """What was asked of one data set when it was read, see :func:`classact.data.readers.read_demonstrations`."""

    episodes: int | str | None = None
    layout: Any = None
    fps: float | None = None


@dataclass(frozen=True)
class Demonstrations:
    """A set of E demonstrations, N steps in all, stored flat: step rows of all episodes one after another.

    Attributes:
        name: short name, for tables (``pusht-human``).
        episode_ends: (E,) int64, the cumulative number of steps: episode e is rows ends[e-1]:ends[e].
        actions: (N, D_a) float32; (N, 0) where no episode carries any.
        proprioception: (N, D_p) float32.
        states: (N, D_s) float64 or None.
        images: camera name -> (N, H, W, 3) uint8: a memory map, or an :class:`~classact.data.images.ImageSource` that
            decodes rows when they are asked for; never in RAM as a whole.
        source: where the data came from, for messages.
        schema: what observations hold and what actions mean. Where a reader declares none, it is assumed: one
            proprioception key, and the action space that D_a alone tells (:meth:`Schema.assumed`). Rotations that are
            declared are checked: 6 of D_a dimensions that are something else hardly ever look like one.
        language: (E, D_l) float32, the embedding of each episode's instruction, or None.
        simulator: registry name of the simulator that the states belong to (:data:`classact.sims.SIMULATORS`); empty
            where it is not known, or there is none.
        versions: package -> version that recorded the states, and "language" -> what embedded the instructions; empty
            where they are not known.
        instructions: (E,) the task of each episode in words; () where none are known.
        unread: what the files hold beside, by name, and what is not read.
        images_shift: the visual shift that ``images`` show; empty where it is not known: the plain appearance then.
        origins: the data sets that they were joined from (:mod:`classact.data.joined`); () where it is one.
        origin: (E,) the number of each episode's data set in ``origins``; None where there are none.
        labelled: (E,) bool, which episodes carry actions; None: all. Of the others ``actions`` hold zeros, which mean
            nothing.
        read_with: how to read them again; None for several sets, and for what was made or chosen from otherwise.
    """

    name: str
    episode_ends: IntArray
    actions: FloatArray
    proprioception: FloatArray
    states: StateArray | None = None
    images: Mapping[str, Images] = field(default_factory=dict)
    source: str = "memory"
    schema: Schema = field(default_factory=Schema)
    language: FloatArray | None = None
    simulator: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    images_shift: str = ""
    instructions: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    origins: tuple[Origin, ...] = ()
    origin: IntArray | None = None
    labelled: NDArray[np.bool_] | None = None
    read_with: ReadWith | None = None

    def __post_init__(self) -> None:
        where = f"{self.name} ({self.source})"
        ends = self.episode_ends
        if ends.ndim != 1 or len(ends) == 0 or ends.dtype != np.int64:
            raise DataError(
                f"{where}: expected episode_ends of shape (E,) and dtype int64 with E >= 1, "
                f"got {ends.shape} {ends.dtype}."
            )
        lengths = np.diff(ends, prepend=0)
        if (lengths <= 0).any():
            e = int(np.argmax(lengths <= 0))
            before = 0 if e == 0 else int(ends[e - 1])
            what = "has 0 steps" if lengths[e] == 0 else "ends before it starts"
            raise DataError(
                f"{where}: episode_ends must increase, but episode {e} {what}: it runs from step {before} to "
                f"{int(ends[e])}. Repair episode_ends, or drop the episode."
            )
        steps = len(self.actions)
        if int(ends[-1]) != steps:
            raise DataError(
                f"{where}: episode_ends ends at {int(ends[-1])} but there are {steps} steps of actions. "
                f"The two must be equal: the file is incomplete, or episode_ends belongs to other data."
            )
        _check_matrix("actions", self.actions, steps, np.float32, where)
        _check_matrix("proprioception", self.proprioception, steps, np.float32, where)
        if self.states is not None:
            _check_matrix("states", self.states, steps, np.float64, where)
        for camera, images in self.images.items():
            check_images(images, f"{where}: camera {camera!r}", steps)
        if self.language is not None:
            _check_matrix("language", self.language, len(ends), np.float32, where)
        if self.instructions and len(self.instructions) != len(ends):
            raise DataError(
                f"{where}: expected one instruction for each of {len(ends)} episodes, got {len(self.instructions)}."
            )
        if self.labelled is not None and (self.labelled.shape != (len(ends),) or self.labelled.dtype != bool):
            raise DataError(
                f"{where}: expected labelled of shape ({len(ends)},) and dtype bool, one for each episode, got "
                f"{self.labelled.shape} {self.labelled.dtype}."
            )
        proprioception, actions = self.proprioception.shape[1], self.actions.shape[1]
        if not actions:
            object.__setattr__(self, "labelled", np.zeros(len(ends), bool))
        language = 0 if self.language is None else self.language.shape[1]
        schema = self.schema
        if schema == Schema():
            assumed = Schema.assumed(tuple(self.images), proprioception, actions, values=self.actions)
            schema = replace(assumed, language=language)
        # Re-rendered views join those that were recorded.
        undeclared = [camera for camera in self.images if camera not in schema.cameras]
        schema = replace(schema, cameras=(*schema.cameras, *undeclared))
        object.__setattr__(self, "schema", schema)
        if schema.proprioception_dim != proprioception:
            raise DataError(
                f"{where}: the schema declares {schema.proprioception_dim} dimensions of proprioception "
                f"({', '.join(f'{key} {size}' for key, size in schema.proprioception) or 'none'}), the data have "
                f"{proprioception}. Declare the keys that are recorded."
            )
        if schema.language != language:
            raise DataError(
                f"{where}: the schema declares a language embedding of size {schema.language}, the data have one of "
                f"{language}."
            )
        if schema.actions is not None:
            if schema.actions.dim != actions:
                raise DataError(
                    f"{where}: the schema declares actions of {schema.actions.dim} dimensions "
                    f"({schema.actions.describe()}), the data have {actions}."
                )
            if self.labelled is None:
                object.__setattr__(self, "actions", schema.actions.about_mean(self.actions))
            elif self.labelled.any():  # the others' zeros would move the mean
                own, values = np.repeat(self.labelled, lengths), self.actions.copy()
                values[own] = schema.actions.about_mean(values[own])
                object.__setattr__(self, "actions", values)
            if schema.actions.has_rotations:
                schema.actions.check_rotations(
                    self.actions if self.labelled is None else self.labelled_actions(), where
                )

    def __len__(self) -> int:
        """Number of episodes E."""
        return len(self.episode_ends)

    def __getitem__(self, index: int) -> Episode:
        if not -len(self) <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        index %= len(self)
        start, end = self.bounds(index)
        return Episode(
            index=index,
            actions=self.actions[start:end],
            proprioception=self.proprioception[start:end],
            states=None if self.states is None else self.states[start:end],
            images={camera: array[start:end] for camera, array in self.images.items()},
        )

    def __iter__(self) -> Iterator[Episode]:
        return (self[i] for i in range(len(self)))

    @property
    def num_steps(self) -> int:
        """N, of all episodes."""
        return len(self.actions)

    @property
    def lengths(self) -> IntArray:
        """(E,) steps of each episode."""
        return np.diff(self.episode_ends, prepend=0)

    def bounds(self, episode: int) -> tuple[int, int]:
        """Flat rows [start, end) of an episode."""
        start = 0 if episode == 0 else int(self.episode_ends[episode - 1])
        return start, int(self.episode_ends[episode])

    def episode_index(self) -> IntArray:
        """(N,) the episode that each step belongs to."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def weights(self) -> NDArray[np.float64] | None:
        """(N,) how often trainings draw each step, relative to others; None where all are drawn equally often."""
        if self.origin is None or len({one.weight for one in self.origins}) < 2:
            return None
        return np.repeat(np.array([one.weight for one in self.origins])[self.origin], self.lengths)

    def carries_actions(self) -> NDArray[np.bool_]:
        """(E,) which episodes carry actions."""
        return np.ones(len(self), bool) if self.labelled is None else self.labelled

    def require_actions(self) -> None:
        """Refuse demonstrations of which some carry no actions.

        Raises:
            ConfigError: how many do not, and what can be done without.
        """
        without = int((~self.carries_actions()).sum())
        if without:
            others = "" if without == len(self) else ", or leave these demonstrations out (--episodes)"
            raise ConfigError(
                f"{self.name} ({self.source}): {without} of {len(self)} demonstrations carry no actions, which this "
                f"learns from. Learn latent ones, with some demonstrations that carry any (classact latent-actions), "
                f"and name them (--latent-actions FOLDER); declare measured states as actions in a layout "
                f"(next_state){others}."
            )

    def labelled_actions(self) -> FloatArray:
        """(n, D_a) actions of the episodes that carry any."""
        return self.actions if self.labelled is None else self.actions[np.repeat(self.labelled, self.lengths)]

    def with_actions(self) -> Demonstrations:
        """The episodes that carry actions, copied; itself where all do."""
        if self.labelled is None or self.labelled.all():
            return replace(self, labelled=None)
        return replace(self.subset(np.flatnonzero(self.labelled).tolist()), labelled=None)

    def action_range(self) -> MinMax:
        """The normalisation of the actions, fitted on all of them."""
        space = self.schema.actions
        return MinMax.fit(self.labelled_actions(), 0.0 if space is None else space.magnitude())

    def only_labelled(self, episodes: Sequence[int]) -> Demonstrations:
        """The same with the actions of the given episodes alone; those of all others are gone."""
        labelled = np.zeros(len(self), bool)
        labelled[np.asarray(episodes, np.int64)] = True
        if self.labelled is not None:
            labelled &= self.labelled
        actions = np.where(np.repeat(labelled, self.lengths)[:, None], self.actions, np.float32(0))
        return replace(self, actions=actions, labelled=labelled)

    def select(
        self, rows: slice | IntArray, episode_ends: IntArray, episodes: slice | IntArray | Sequence[int]
    ) -> Demonstrations:
        """The steps ``rows`` as episodes that end at ``episode_ends``, with the instructions of ``episodes``.

        Slices give views; of images that are decoded on demand, so do numbers.
        """
        return replace(
            self,
            episode_ends=episode_ends,
            actions=self.actions[rows],
            proprioception=self.proprioception[rows],
            states=None if self.states is None else self.states[rows],
            images={camera: array[rows] for camera, array in self.images.items()},
            language=None if self.language is None else self.language[episodes],
            instructions=tuple(np.asarray(self.instructions, object)[episodes]) if self.instructions else (),
            origin=None if self.origin is None else self.origin[episodes],
            labelled=None if self.labelled is None else self.labelled[episodes],
            read_with=None,
        )

    def subset(self, episodes: Sequence[int]) -> Demonstrations:
        """The given episodes, in the given order, copied; of images that are decoded on demand, a view."""
        rows = np.concatenate([np.arange(*self.bounds(e)) for e in episodes])
        ends = np.cumsum([self.lengths[e] for e in episodes], dtype=np.int64)
        return self.select(rows, ends, np.asarray(episodes, np.int64))

    def set_by_set(self) -> IntArray:
        """(E,) episodes in the order of the data sets that they were joined from, whatever is held out at the end."""
        return np.arange(len(self)) if self.origin is None else np.argsort(self.origin, kind="stable")

    def with_images(self, images: Mapping[str, Images], *, shift: str = "") -> Demonstrations:
        """The same demonstrations seen differently (re-rendered, resized), under ``shift`` as ``images_shift``."""
        return replace(self, images=images, images_shift=shift)

    def fingerprint(self) -> str:
        """SHA-256 over episode bounds, actions, proprioception, states, language (not images): which data this is."""
        digest = hashlib.sha256()
        parts = (self.episode_ends, self.actions, self.proprioception, self.states, self.language, self.labelled)
        for array in parts:
            if array is not None:
                digest.update(str((array.shape, array.dtype)).encode())
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one timestep.

    Attributes:
        images: camera name -> (H, W, 3) uint8 RGB.
        proprioception: (D_p,) float32.
        state: (D_s,) float64 true simulator state; for state policies and re-rendering, None on a real robot.
        language: (D_l,) float32 embedding of the instruction, None where the task has none.
    """

    images: Mapping[str, ImageArray]
    proprioception: FloatArray
    state: StateArray | None = None
    language: FloatArray | None = None

    @staticmethod
    def of(
        schema: Schema,
        images: Mapping[str, Any],
        proprioception: Mapping[str, Any],
        *,
        state: Any = None,
        language: Any = None,
    ) -> Observation:
        """An observation from values by key, as a robot's driver has them.

        Args:
            schema: of the data that a policy was trained on (``policy.spec.schema``).
            images, state, language: see the attributes.
            proprioception: key -> numbers, all keys that the schema declares.

        Raises:
            DataError: a declared key is missing or of another size, or an image is of another shape or dtype.
        """
        joined = schema.join(proprioception)
        words = None if language is None else np.asarray(language, np.float32)
        schema.check(images, joined, words, cameras=tuple(images))
        return Observation(images, joined, None if state is None else np.asarray(state, np.float64), words)


@dataclass(frozen=True)
class Criterion:
    """A named success rule: at some control step ``metric`` exceeds ``threshold``.

    Attributes:
        name: in tables.
        metric: of the simulator.
        threshold: to be exceeded.
        steps: control steps within which it must happen; None: the whole episode.
        inclusive: reaching the threshold is enough.
    """

    name: str
    metric: str
    threshold: float
    steps: int | None = None
    inclusive: bool = False

    def met(self, value: float) -> bool:
        """Whether a value of ``metric`` is enough, whenever it was reached."""
        return value >= self.threshold if self.inclusive else value > self.threshold

    def first(self, values: Sequence[float]) -> int | None:
        """The first control step, counted from 1, at which the values of ``metric`` fulfil it; None: never."""
        return next((step for step, value in enumerate(values[: self.steps], 1) if self.met(value)), None)


@dataclass(frozen=True)
class RolloutResult:
    """One evaluated episode.

    Attributes:
        seed: the seed that initial state and appearance were drawn from.
        steps: control steps executed.
        maxima: metric name -> largest value reached.
        success: criterion name -> reached or not.
        first_success: criterion name -> first step (counted from 1) at which it held, None if never.
        states: (steps + 1, D_s) float64, from the initial state on: enough to re-render the episode.
        actions: (steps, D_a) float32 as executed.
        metrics: metric name -> (steps,) float32 trace.
        decisions: (n,) control steps, counted from 0, before which the policy decided; None where it was not kept.
        novelty: (n,) float32, how far each of these observations was from what was demonstrated, in [0, 1]; None
            where the policy does not say.
        doubt: (n,) float64 that the episode will succeed, as it adds up over its decisions; None as above.
    """

    seed: int
    steps: int
    maxima: Mapping[str, float]
    success: Mapping[str, bool]
    first_success: Mapping[str, int | None]
    states: StateArray
    actions: FloatArray
    metrics: Mapping[str, FloatArray]
    decisions: IntArray | None = None
    novelty: FloatArray | None = None
    doubt: StateArray | None = None
