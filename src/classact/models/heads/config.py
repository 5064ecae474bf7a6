"""Policy heads by name, and their settings; nothing here imports torch.

A head is a frozen dataclass of settings that derives from :class:`HeadConfig`, a class that derives from
:class:`classact.models.heads.base.Head`, and an entry of :data:`HEADS` that joins the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self

from classact.errors import ConfigError, DataError, UnknownNameError, choose
from classact.utils.codec import ADDED, fields_from_json, fields_to_json
from classact.utils.limits import check_names, check_range
from classact.utils.registry import Registry


@dataclass(frozen=True)
class HeadConfig:
    """Settings of a policy head: its own as fields of a frozen subclass, facts about it as class variables.

    Attributes:
        name: in :data:`HEADS`.
        about: one line.
        acting: names of fields that training does not depend on, so that a trained head may act with other ones.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    acting: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def preset(cls, size: str) -> Self:  # noqa: ARG003
        """Settings for "paper", "small" (two CPU cores) or "debug"; the defaults, where a head has no sizes."""
        return cls()

    def describe(self) -> str:
        """How large the network is, in a few words: ``U-Net of widths 256, 512, 1024``."""
        return ", ".join(f"{f.name} {getattr(self, f.name)}" for f in fields(self)) or "of one size"

    def acting_settings(self) -> dict[str, Any]:
        """The values of :attr:`acting`."""
        return {name: getattr(self, name) for name in self.acting}

    def with_acting(self, changes: Mapping[str, Any]) -> Self:
        """These settings with some of :attr:`acting` changed.

        Raises:
            ConfigError: a setting that this head does not have, or that cannot be changed after training.
        """
        for name in changes:
            if name not in self.acting:
                can = f"only {', '.join(self.acting)} can be" if self.acting else "it has none that can be"
                raise UnknownNameError(f"{name} is no setting of how a head {self.name!r} acts: {can} chosen.")
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The settings, behind the head's name."""
        return {"name": self.name, **fields_to_json(self)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> HeadConfig:
        """What :meth:`to_json` wrote, of whichever head.

        Raises:
            DataError: no head of this name, or other settings than it has.
        """
        name = str(value.get("name") if isinstance(value, dict) else value)
        if name not in HEADS:
            raise DataError(f"{where}: {choose('head', name, HEADS)}.")
        return fields_from_json(HEADS[name].config, {k: v for k, v in value.items() if k != "name"}, where)


@dataclass(frozen=True)
class HeadEntry:
    """A registered head.

    Attributes:
        config: class of its settings.
        make: the :class:`~classact.models.heads.base.Head`, called with (settings, feature_dim, action_dim, horizon),
            or "module:class" of it, imported when one is made.
    """

    config: type[HeadConfig]
    make: Any


@dataclass(frozen=True)
class UNetConfig:
    """Architecture of the U-Net. The defaults are the paper's and its released code's.

    Attributes:
        widths: channels of each level; between two levels the number of steps halves.
        kernel_size: of the convolutions over steps, odd.
        groups: of GroupNorm.
        step_dim: size of the embedding of the denoising step, where there is one.
    """

    widths: tuple[int, ...] = (256, 512, 1024)
    kernel_size: int = 5
    groups: int = 8
    step_dim: int = 256

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1 or self.groups < 1:
            raise ConfigError(
                f"expected at least one width, all of at least 1, and groups >= 1, got {self.widths} and {self.groups}."
            )
        if odd := [width for width in self.widths if width % self.groups]:
            raise ConfigError(
                f"GroupNorm divides channels into {self.groups} equal groups, which {odd[0]} of widths {self.widths} "
                f"does not allow; choose multiples of {self.groups}."
            )
        if self.kernel_size < 1 or self.kernel_size % 2 == 0:
            raise ConfigError(f"expected an odd kernel_size (it is centred on a step), got {self.kernel_size}.")
        check_step_dim(self.step_dim)

    @property
    def multiple(self) -> int:
        """What the number of steps must be a multiple of."""
        return 1 << (len(self.widths) - 1)


@dataclass(frozen=True)
class ResidualConfig:
    """Architecture of the residual MLP, which is an order of magnitude faster than the U-Net on CPUs: convolutions over
    16 steps are slow there.

    Attributes:
        width: of the residual stream.
        blocks: one behind the other.
        step_dim: size of the embedding of the denoising step or time, where there is one; even.
    """

    width: int = 384
    blocks: int = 4
    step_dim: int = 64

    def __post_init__(self) -> None:
        check_range(self, "width", "blocks", least=1)
        check_step_dim(self.step_dim)


def check_step_dim(step_dim: int) -> None:
    """Refuse sizes that sines and cosines cannot share equally."""
    if step_dim < 4 or step_dim % 2:
        raise ConfigError(f"expected an even step_dim of at least 4 (sines and cosines), got {step_dim}.")


_UNETS = {
    "paper": UNetConfig(),
    "small": UNetConfig(widths=(64, 128, 256), step_dim=64),
    "debug": UNetConfig(widths=(16, 32), groups=4, step_dim=16),
}


@dataclass(frozen=True)
class NetworkHeadConfig(HeadConfig):
    """Of heads that stand on a network from chunks and features to chunks.

    Attributes:
        unet: architecture of the U-Net.
        network: "unet" (the paper's), or "residual", a residual MLP over the flattened chunk.
        residual: architecture of the residual MLP.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    network: Literal["unet", "residual"] = "unet"
    residual: ResidualConfig = field(default_factory=ResidualConfig)

    def __post_init__(self) -> None:
        check_names(self)

    @classmethod
    def preset(cls, size: str) -> Self:
        """The paper's U-Net; a residual MLP on two CPU cores; the smallest of both for tests."""
        residual = ResidualConfig(width=32, blocks=1, step_dim=16) if size == "debug" else ResidualConfig()
        return cls(network="residual" if size == "small" else "unet", unet=_UNETS[size], residual=residual)

    def describe(self) -> str:
        """The widths of the network."""
        if self.network == "unet":
            return f"U-Net of widths {', '.join(map(str, self.unet.widths))}"
        return f"residual MLP of {self.residual.blocks} blocks of width {self.residual.width}"


@dataclass(frozen=True)
class DiffusionConfig(NetworkHeadConfig):
    """Settings of Diffusion Policy.

    Attributes:
        scheduler: how actions are sampled: "ddim" (the paper's table 8; no noise but the first), or "ddpm" (the
            released code; noise at each step). Both are trained alike, so a trained head can be sampled by either.
        training_steps: denoising steps K in training.
        inference_steps: denoising steps in sampling, at most K.
        beta_schedule: of the noise; "squaredcos_cap_v2" is the squared cosine of Nichol and Dhariwal (2021).
        clip_sample: clamp the predicted actions to [-1, 1] at each step.
        prediction: what the network predicts: the "noise" in a noisy chunk (the paper), or the "chunk" itself, which
            small networks learn in a fraction of the updates.
    """

    name = "diffusion"
    about = "Diffusion Policy: chunks are denoised from Gaussian noise"
    acting = ("scheduler", "inference_steps")

    scheduler: Literal["ddim", "ddpm"] = "ddim"
    training_steps: int = 16
    inference_steps: int = 16
    beta_schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"
    clip_sample: bool = True
    prediction: Literal["noise", "chunk"] = field(default="noise", metadata=ADDED)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "inference_steps", least=1, most=self.training_steps)

    @classmethod
    def preset(cls, size: str) -> Self:
        """The chunk is predicted where the network is a residual MLP."""
        made = super().preset(size)
        return replace(made, prediction="chunk" if made.network == "residual" else "noise")


@dataclass(frozen=True)
class MLPConfig(NetworkHeadConfig):
    """Settings of direct regression; the networks' ``step_dim`` has no effect, for there are no denoising steps.

    Attributes:
        loss: of actions: "l2" (the paper's), or "l1", whose minimum is the median: between two ways to go it takes one.
    """

    name = "mlp"
    about = "direct regression of chunks, without diffusion"

    loss: Literal["l1", "l2"] = "l2"

    @classmethod
    def preset(cls, size: str) -> Self:
        """L1 where the network is a residual MLP."""
        made = super().preset(size)
        return replace(made, loss="l1" if made.network == "residual" else "l2")


@dataclass(frozen=True)
class FlowConfig(NetworkHeadConfig):
    """Settings of a flow whose network predicts the chunk itself, so that two steps are enough (L1 Flow,
    arXiv 2511.17898).

    Attributes:
        loss: of the predicted chunk.
        inference_steps: network passes of a decision; times are evenly spaced from 0 (noise) on.
    """

    name = "flow"
    about = "flow from noise to the chunk that is predicted at each of two steps"
    acting = ("inference_steps",)

    loss: Literal["l1", "l2"] = "l1"
    inference_steps: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "inference_steps", least=1)


HEADS: Registry[HeadEntry] = Registry(
    "head",
    {
        "diffusion": HeadEntry(DiffusionConfig, "classact.models.heads.diffusion:DiffusionHead"),
        "mlp": HeadEntry(MLPConfig, "classact.models.heads.mlp:MLPHead"),
        "flow": HeadEntry(FlowConfig, "classact.models.heads.flow:FlowHead"),
    },
)


def head_entry(config: HeadConfig) -> HeadEntry:
    """The entry of the head that has these settings.

    Raises:
        ConfigError: settings of no registered head.
    """
    entry = HEADS.get(config.name) if isinstance(config, HeadConfig) else None
    if entry is None or type(config) is not entry.config:
        known = ", ".join(f"{entry.config.__name__} ({name})" for name, entry in HEADS.items())
        raise ConfigError(f"expected the settings of a head: {known}; got {type(config).__name__}.")
    return entry
