"""Settings of latent action models, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from classact.errors import ConfigError
from classact.utils.codec import ADDED
from classact.utils.limits import check_names, check_range

IMAGE_SIZE = 64
"""Side in pixels of the images that latent actions are learned from."""


@dataclass(frozen=True)
class LatentActionConfig:
    """What a latent action z_t is, and the networks that it is learned with. Defaults are the released code's.

    The inverse dynamics infer z_t from o_{t-C+1..t} and o_{t+1}; the forward dynamics predict o_{t+1} from o_{t-C+1..t}
    and z_t; the decoder, which sees z_t alone, gives a_t.

    Attributes:
        network: "mlp" or "transformer" for numbers, "cnn" for images.
        camera: whose images are observed, by "cnn"; None for numbers.
        keys: proprioception keys that are observed; None: all of them.
        context: C, observations up to o_t; before an episode's start its first one is repeated.
        latent_dim: dimensions of z.
        codes: entries of the codebook that z is quantised by (LAPO: 128); 0: z is continuous (CLAM).
        standardize: scale each number to mean 0 and standard deviation 1 over all demonstrations. The released code
            leaves numbers as they are: then the action loss drowns the reconstruction of small ones.
        changes: the networks see the observations before and behind o_t as changes from one to the next, and predict
            o_{t+1} as a change, each number in standard deviations of its changes. From one step to the next numbers
            change by a small share of their range, and actions lie in the differences of these changes: networks that
            see them as such learn in thousands of updates what else takes hundreds of thousands. Of numbers alone:
            "cnn" predicts images as changes anyway.
        width: factor on the networks' sizes.
    """

    network: Literal["mlp", "transformer", "cnn"] = "mlp"
    camera: str | None = None
    keys: tuple[str, ...] | None = None
    context: int = 2
    latent_dim: int = 8
    codes: int = 0
    standardize: bool = True
    changes: bool = field(default=False, metadata=ADDED)
    width: float = 1.0

    def __post_init__(self) -> None:
        check_names(self)
        check_range(self, "context", "latent_dim", least=1)
        check_range(self, "codes", least=0)
        check_range(self, "width", above=0)
        if self.codes == 1:
            raise ConfigError("a codebook of one entry says nothing: expected codes of 0 (continuous) or at least 2.")
        if (self.network == "cnn") != (self.camera is not None):
            raise ConfigError(
                f"network {self.network!r} observes {'images' if self.network == 'cnn' else 'numbers'}, got camera "
                f"{self.camera!r}. Name a camera for 'cnn', and none for the others."
            )

    def scaled(self, size: int) -> int:
        """A size of the networks by ``width``: a multiple of 8, so that attention heads divide it."""
        return max(8, round(size * self.width / 8) * 8)
