"""Visual shifts: what changes between episodes without changing the physics (paper section E).

Every appearance is drawn from a generator that is handed in, never from the one that draws the start state, so that
the same seed starts the same episode under every shift.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Color = tuple[int, int, int]

MIN_COLOR_DISTANCE = 100.0
"""Smallest Euclidean distance in 0..255 RGB between any two of background, goal, tee and agent.

The paper asks for "a minimum Euclidean distance in RGB space" without giving it; 100 of the 441 possible still
separates every pair at a glance and accepts about one draw in five.
"""

MAX_BACKGROUND_REDNESS = 60
"""Largest excess of red over the stronger of green and blue in a background (the paper: "avoid strong red tones")."""

_MAX_DRAWS = 10_000


@dataclass(frozen=True)
class PushTColors:
    """The four colours of a Push-T scene, RGB in 0..255."""

    background: Color
    goal: Color
    tee: Color
    agent: Color


FIXED_COLORS = PushTColors(
    background=(255, 255, 255),
    goal=(144, 238, 144),
    tee=(119, 136, 153),
    agent=(65, 105, 225),
)
"""gym-pusht's own colours: White, LightGreen, LightSlateGray, RoyalBlue."""


def redness(color: Color) -> int:
    """How far red exceeds the stronger of green and blue; negative where it does not."""
    return color[0] - max(color[1], color[2])


def smallest_distance(colors: PushTColors) -> float:
    """Smallest Euclidean RGB distance between any two of the four colours."""
    table = np.array([colors.background, colors.goal, colors.tee, colors.agent], dtype=np.float64)  # (4, 3)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1)  # (4, 4)
    return float(distances[np.triu_indices(4, k=1)].min())


def sample_colors(rng: np.random.Generator) -> PushTColors:
    """Draw the colours of one Rand-Color episode (paper section E.2).

    All four are uniform in RGB, redrawn together until the background is not strongly red
    (:data:`MAX_BACKGROUND_REDNESS`) and every pair is at least :data:`MIN_COLOR_DISTANCE` apart.
    """
    for _ in range(_MAX_DRAWS):
        table = rng.integers(0, 256, size=(4, 3))
        background, goal, tee, agent = ((int(r), int(g), int(b)) for r, g, b in table)
        colors = PushTColors(background=background, goal=goal, tee=tee, agent=agent)
        if redness(background) <= MAX_BACKGROUND_REDNESS and smallest_distance(colors) >= MIN_COLOR_DISTANCE:
            return colors
    raise AssertionError("unreachable: about one draw in five is accepted")
