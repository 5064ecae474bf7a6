"""Visual shifts: what changes between episodes without changing the physics (paper section E).

A shift is a frozen value that draws an :class:`Appearance` for each episode, which simulators consult while they draw.
Appearances are drawn from a generator of their own, never from that of the initial state, so that a seed's initial
state is the same under every shift. Shifts of the finished image alone work with every simulator, see
:mod:`classact.sims.shifted`.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from classact.data.types import ImageArray, StateArray
from classact.errors import ConfigError, UnknownNameError, choose
from classact.utils.registry import Registry

Color = tuple[int, ...]

MIN_COLOR_DISTANCE = 100.0
"""Smallest Euclidean RGB distance between any two colours. The paper (E.2) gives no value; 100 of the 441 possible
separates every pair at a glance and accepts about one draw in five."""

MAX_BACKGROUND_REDNESS = 60  # largest excess of red over green and blue in a background ("avoid strong red tones")
_MAX_DRAWS = 10_000
_APPEARANCE_STREAM = 0x70757368


class PushTColors(NamedTuple):
    """The four colours of a Push-T scene, RGB in 0..255."""

    background: Color
    goal: Color
    tee: Color
    agent: Color


FIXED_COLORS = PushTColors((255, 255, 255), goal=(144, 238, 144), tee=(119, 136, 153), agent=(65, 105, 225))
"""gym-pusht's own colours: White, LightGreen, LightSlateGray, RoyalBlue."""


def redness(color: Color) -> int:
    """How far red exceeds the stronger of green and blue; may be negative."""
    return color[0] - max(color[1], color[2])


def smallest_distance(colors: PushTColors) -> float:
    """Smallest Euclidean RGB distance between any two of the four colours."""
    table = np.array(colors, dtype=np.float64)  # (4, 3)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)  # (4, 4)
    return float(distances[np.triu_indices(4, k=1)].min())


def sample_colors(rng: np.random.Generator) -> PushTColors:
    """Draw the colours of one Rand-Color episode (paper section E.2): uniform in RGB, redrawn together until the
    background is not strongly red and every pair is far enough apart.
    """
    for _ in range(_MAX_DRAWS):
        colors = PushTColors(*(tuple(color) for color in rng.integers(0, 256, size=(4, 3)).tolist()))
        if redness(colors.background) <= MAX_BACKGROUND_REDNESS and smallest_distance(colors) >= MIN_COLOR_DISTANCE:
            return colors
    raise AssertionError("unreachable: about one draw in five is accepted")


class Viewpoint(NamedTuple):
    """Position and target of a camera in metres, field of view in degrees (None: as the camera that it replaces)."""

    position: StateArray
    target: StateArray
    fovy: float | None


class Appearance:
    """How one episode looks: consulted to draw a simulator's first camera, ``step`` control steps after the start.
    Methods that are not overridden change nothing.
    """

    colors: PushTColors | None = None  # of the scene; None: the simulator's own

    def camera(self, step: int) -> Viewpoint | None:  # noqa: ARG002 (for those that move)
        """Where the scene is seen from; None: from the simulator's own camera."""
        return None

    def image(self, image: ImageArray, step: int) -> ImageArray:  # noqa: ARG002 (for those that move)
        """(S, S, 3) uint8: what is shown of a finished image; the argument is not changed."""
        return image


@dataclass(frozen=True)
class Shift:
    """What differs between episodes. Fields are the constants that can be given in brackets after its name.

    Attributes:
        changes: "image": the finished image, for every simulator; "camera", "colors": for simulators with such a shift
            among their ``SimulatorSpec.shifts``; "nothing".
    """

    changes: ClassVar[str] = "image"

    def draw(self, rng: np.random.Generator, target: Sequence[float] = (0.0, 0.0, 0.0)) -> Appearance:  # noqa: ARG002
        """The appearance of one episode; ``target`` (3,) metres is the point that the task's cameras look at."""
        return Appearance()

    def describe(self) -> dict[str, Any]:
        """As plain values: part of the identity of images."""
        return {"kind": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class Fixed(Shift):
    """The simulator's own appearance in every episode."""

    changes: ClassVar[str] = "nothing"


@dataclass(frozen=True)
class RandomColors(Shift):
    """New colours in each episode (Push-T; paper E.2), see :func:`sample_colors`."""

    changes: ClassVar[str] = "colors"

    def draw(self, rng: np.random.Generator, target: Sequence[float] = (0.0, 0.0, 0.0)) -> Appearance:  # noqa: ARG002
        shown = Appearance()
        shown.colors = sample_colors(rng)
        return shown


@dataclass(frozen=True)
class CameraShift(Shift):
    """The global camera looks at a fixed point from a random place on a sphere, and may move on it (paper E.1).

    With the target c, the radius r and the unit vector u from c to the camera: azimuth and polar angle of u are
    uniform, as are (x, y); d is the unit vector of x t1 + y t2, where t1 = up x u and t2 = u x t1 span the tangent
    plane. After s steps the camera is at c + r (u cos(a s) + d sin(a s)), a the arc per step, and looks at c with the
    world's z axis up.

    Attributes:
        radius: r in metres.
        azimuth: (low, high) in radians, from the world's x axis about z.
        polar: (low, high) in radians, from the world's z axis down.
        x, y: (low, high) of the direction's parts along t1 and t2.
        arc: a, radians per control step; 0: the camera rests (Rand-Cam).
        min_x, min_z: places below these (metres) are redrawn; None: no bound.
        target: c in metres; None: the task's own.
        fovy: vertical field of view in degrees; None: that of the camera it replaces.
    """

    changes: ClassVar[str] = "camera"

    radius: float = 1.0
    azimuth: tuple[float, float] = (0.0, 2 * math.pi)
    polar: tuple[float, float] = (math.pi / 3, 2 * math.pi / 3)
    x: tuple[float, float] = (-1.0, 1.0)
    y: tuple[float, float] = (-0.01, 0.3)
    arc: float = 1.5e-4
    min_x: float | None = None
    min_z: float | None = None
    target: tuple[float, float, float] | None = None
    fovy: float | None = None

    def __post_init__(self) -> None:
        for name in ("azimuth", "polar", "x", "y"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ConfigError(f"camera shift: expected {name} as (low, high), got ({low}, {high}).")
        if not (0 < self.radius < math.inf and self.polar[0] > 0 and self.polar[1] < math.pi):
            raise ConfigError(
                f"camera shift: expected radius > 0 and polar angles inside 0..pi, where up is defined; got radius "
                f"{self.radius} and polar {self.polar}."
            )
        if not math.isfinite(self.arc):
            raise ConfigError(f"camera shift: expected a finite arc, got {self.arc}.")
        if self.fovy is not None and not 0 < self.fovy < 180:
            raise ConfigError(f"camera shift: expected fovy between 0 and 180 degrees, got {self.fovy}.")

    def draw(self, rng: np.random.Generator, target: Sequence[float] = (0.0, 0.0, 0.0)) -> CameraPath:
        """``target`` is used where the shift has none; a ConfigError where ``min_x`` and ``min_z`` exclude the whole
        sphere.
        """
        c = np.asarray(target if self.target is None else self.target, np.float64)
        for _ in range(_MAX_DRAWS):
            azimuth, polar = rng.uniform(*self.azimuth), rng.uniform(*self.polar)
            u = np.array([math.sin(polar) * math.cos(azimuth), math.sin(polar) * math.sin(azimuth), math.cos(polar)])
            place = c + self.radius * u
            if (self.min_x is None or place[0] >= self.min_x) and (self.min_z is None or place[2] >= self.min_z):
                break
        else:
            raise ConfigError(
                f"camera shift: of {_MAX_DRAWS:,} places at {self.radius} m from {c.tolist()}, none has x >= "
                f"{self.min_x} and z >= {self.min_z}. Relax the bounds, or move the target."
            )
        x, y = rng.uniform(*self.x), rng.uniform(*self.y)
        t1 = np.cross([0.0, 0.0, 1.0], u)
        t1 /= np.linalg.norm(t1)
        t2 = np.cross(u, t1)
        d = x * t1 + y * t2
        return CameraPath(c, u, d / np.linalg.norm(d), self.radius, self.arc, self.fovy)


@dataclass(frozen=True, eq=False)
class CameraPath(Appearance):
    """The camera of one episode at every step, see :class:`CameraShift`."""

    target: StateArray
    start: StateArray
    direction: StateArray
    radius: float
    arc: float
    fovy: float | None

    def position(self, step: int) -> StateArray:
        """(3,) metres, after ``step`` control steps."""
        angle = self.arc * step
        along = math.cos(angle) * self.start + math.sin(angle) * self.direction
        place: StateArray = self.target + self.radius * along
        return place

    def camera(self, step: int) -> Viewpoint:
        return Viewpoint(self.position(step), self.target, self.fovy)


@dataclass(frozen=True)
class ImageRotation(Shift):
    """The image turns about its centre (Aloha-Transfer; paper E.1).

    The initial angle is uniform, the direction a fair coin; after s steps the angle is start +- rate s. Uncovered
    corners are black.
    """

    start: tuple[float, float] = (0.0, 360.0)  # (low, high) in degrees, counter-clockwise
    rate: float = 0.5  # degrees per control step

    def __post_init__(self) -> None:
        low, high = self.start
        if not (low <= high and math.isfinite(self.rate)):
            raise ConfigError(
                f"image rotation: expected start as (low, high) and a finite rate, got ({low}, {high}) and {self.rate}."
            )

    def draw(self, rng: np.random.Generator, target: Sequence[float] = (0.0, 0.0, 0.0)) -> RotationPath:  # noqa: ARG002
        angle = rng.uniform(*self.start)
        return RotationPath(float(angle), self.rate if rng.integers(2) else -self.rate)


@dataclass(frozen=True)
class RotationPath(Appearance):
    """The image's angle at every step, see :class:`ImageRotation`."""

    start: float
    rate: float

    def angle(self, step: int) -> float:
        """Degrees, counter-clockwise, after ``step`` control steps."""
        return self.start + self.rate * step

    def image(self, image: ImageArray, step: int) -> ImageArray:
        return rotate(image, self.angle(step))


def rotate(image: ImageArray, degrees: float) -> ImageArray:
    """A square image turned counter-clockwise about its centre; uncovered corners are black."""
    import cv2

    size = len(image)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), degrees, 1.0)
    return np.asarray(cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR), np.uint8)


_RELEASED = CameraShift(radius=0.9, arc=1.5e-3, min_x=0.4, min_z=1.1, target=(0.0, 0.0, 1.0), fovy=45.0)

SHIFTS: Registry[Shift] = Registry(
    "shift",
    {
        "fixed": Fixed(),
        "fixed-color": Fixed(),
        "rand-color": RandomColors(),
        "random-static": replace(_RELEASED, arc=0.0),
        "dynamic": _RELEASED,
        "random-static-paper": CameraShift(arc=0.0),
        "dynamic-paper": CameraShift(),
        "rotation": ImageRotation(),
        "rotation-static": ImageRotation(rate=0.0),
    },
)
"""Name -> shift. ``dynamic`` and ``random-static`` are the released code's cameras, which gave the paper's numbers: in
front of the robot and above the table. The ``-paper`` ones follow E.1, where the table may hide the task."""


def parse_shift(text: str, adapt: Callable[[Shift], Shift] | None = None) -> Shift:
    """A shift from its name, with changed constants in brackets: ``dynamic``, ``dynamic(radius=1.2, arc=0.003)``.

    ``adapt`` is applied to a shift of :data:`SHIFTS` before constants are changed. Unknown names and constants, and
    values that are no numbers, are ConfigErrors.
    """
    name, bracket, rest = text.strip().partition("(")
    name = name.strip()
    shift = SHIFTS[name] if adapt is None else adapt(SHIFTS[name])
    if not bracket:
        return shift
    known = [field.name for field in fields(shift)]
    if not known:
        raise ConfigError(f"shift {text!r}: {name!r} has no constants. Write it as {name}.")
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("something follows the bracket")
        if call.args:
            raise ValueError("constants need names")
        given = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:  # as literal_eval documents
        raise ConfigError(
            f"shift {text!r} cannot be read ({error}). Write it as {name}, or as {name}(constant=number, ...) with "
            f"constants of {known}."
        ) from None
    for key, value in given.items():
        if key not in known:
            raise UnknownNameError(choose(f"constant of shift {name!r}", key, known))
        present = getattr(shift, key)
        pair = isinstance(present, tuple) or key == "target"
        numbers = value if pair and isinstance(value, tuple) else (value,)
        wanted = len(present) if isinstance(present, tuple) else 3
        if not all(_is_number(v) for v in numbers) or (pair and len(numbers) != wanted):
            what = f"{wanted} numbers in brackets" if pair else "a number"
            raise ConfigError(f"shift {text!r}: expected {key} as {what}, got {value!r}.")
    return replace(shift, **given)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_shift(
    simulator: str, shift: str, known: Sequence[str], adapt: Callable[[Shift], Shift] | None = None
) -> Shift:
    """The shift of this name (:func:`parse_shift`), if the simulator draws it or one that changes the same; else a
    ConfigError.
    """
    name = shift.partition("(")[0].strip()
    if name not in known:
        drawn = {SHIFTS[other].changes for other in known if other in SHIFTS} - {"nothing"}
        if name not in SHIFTS or SHIFTS[name].changes not in drawn:
            raise UnknownNameError(f"{simulator}: " + choose("shift", shift, known))
    return parse_shift(shift, adapt)


def changes_image(shift: str) -> bool:
    """Whether this shift changes the finished image alone."""
    name = shift.partition("(")[0].strip()
    return name in SHIFTS and SHIFTS[name].changes == "image"


def is_plain(shift: str) -> bool:
    """Whether this is the name of the appearance without a shift."""
    return shift.strip() in SHIFTS and SHIFTS[shift.strip()].changes == "nothing"


def appearance_rng(seed: int) -> np.random.Generator:
    """The generator of an episode's appearance, independent of that of its initial state."""
    return np.random.default_rng([seed, _APPEARANCE_STREAM])
