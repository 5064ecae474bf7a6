"""A visual shift of which no simulator has heard: the picture fades to its negative as the episode goes on."""

from dataclasses import dataclass

import numpy as np

from classact.sims.shifts import SHIFTS, Appearance, Shift


@dataclass(frozen=True)
class Fade(Appearance):
    """How one episode looks."""

    start: float
    rate: float

    def image(self, image, step):
        """The picture ``step`` control steps after the start."""
        share = min(self.start + self.rate * step, 1.0)
        return np.round((1 - share) * image + share * (255.0 - image)).astype(np.uint8)


@dataclass(frozen=True)
class Negative(Shift):
    """The start is drawn anew for each episode; ``negative(rate=0)`` rests there."""

    rate: float = 0.02

    def draw(self, rng, target=(0.0, 0.0, 0.0)):
        """The appearance of an episode."""
        return Fade(float(rng.uniform(0.6, 1.0)), self.rate)


SHIFTS.register("negative", Negative())
