"""Settings of the objectives, and what callers need to know of one without making it, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from classact.errors import ConfigError, DataError, choose
from classact.utils.codec import fields_from_json, fields_to_json
from classact.utils.limits import check_names, check_range

TAU_RANGE = (0.01, 1.0)  # limits of a learned temperature: below, single pairs decide; above, nothing is told apart


@dataclass(frozen=True)
class Recipe:
    """How the paper trains an objective (C.1).

    Attributes:
        batch_size: anchors per step.
        epochs: passes over all steps as anchors.
        learning_rate: peak rate of AdamW; None: the preset's optimiser is the objective's own (CLASS: LARS).
    """

    batch_size: int = 64
    epochs: float = 40
    learning_rate: float | None = 1e-4


@dataclass(frozen=True)
class ObjectiveConfig:
    """Settings of an objective: its own as fields of a frozen subclass, facts about it as class variables.

    Attributes:
        name: in the registry.
        label: for tables.
        about: one line.
        recipe: the paper's training.
        companions: context frames drawn for each anchor, so that a row of a batch is M = 1 + ``companions`` images.
        views: R, random views of each image.
        together: whether all images of a row share a random view (crop, colours), as for predicting dynamics between
            them.
        needs_similarity: whether it reads the similarity of actions.
        needs_actions: whether it learns from actions in any way, or from what stands for them.
    """

    name: ClassVar[str]
    label: ClassVar[str]
    about: ClassVar[str] = ""
    recipe: ClassVar[Recipe] = Recipe()
    companions: ClassVar[int] = 0
    views: ClassVar[int] = 1
    together: ClassVar[bool] = False
    needs_similarity: ClassVar[bool] = False
    needs_actions: ClassVar[bool] = True  # unless it says that demonstrations without any will do

    @property
    def target_decay(self) -> float | None:
        """Of a second encoder whose weights follow the trained one's (BYOL); None: there is none."""
        return None

    @property
    def images_per_anchor(self) -> int:
        """Views that the encoder sees per anchor, the unit of budgets in images."""
        return (1 + self.companions) * self.views

    @property
    def terms(self) -> tuple[ObjectiveConfig, ...]:
        """The single objectives of a sum, or this one itself."""
        return (self,)

    @property
    def written(self) -> str:
        """As on the command line: ``class``, or ``class+0.1*byol``."""
        return self.name

    def describe(self) -> str:
        """With what differs from the defaults, for titles: ``CLASS (weighting=hard)``."""
        usual = type(self)()
        names = [f.name for f in fields(self) if getattr(self, f.name) != getattr(usual, f.name)]
        changed = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"{self.label} ({changed})" if changed else self.label

    def to_json(self) -> dict[str, Any]:
        """The settings, behind the objective's name."""
        return {"name": self.name, **fields_to_json(self)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> ObjectiveConfig:
        """Inverse of :meth:`to_json`, for any objective."""
        from classact.objectives import OBJECTIVES

        name = str(value.get("name")) if isinstance(value, dict) else ""
        if name != CombinedConfig.name and name not in OBJECTIVES:
            raise DataError(f"{where}: {choose('objective', name, OBJECTIVES)}.")
        kind = CombinedConfig if name == CombinedConfig.name else OBJECTIVES[name].config
        return fields_from_json(kind, {key: item for key, item in value.items() if key != "name"}, where)


@dataclass(frozen=True)
class SoftInfoNCEConfig(ObjectiveConfig):
    """Settings of the objective.

    Attributes:
        temperature: tau (table 4: 0.05).
        reduction: "anchors": mean over the anchors that have a positive (released code); "batch": 1 / B (eq. 1). The
            two differ by the share of anchors with a positive, that is, by a factor on the learning rate.
        pairs: "all" (the paper), or "cross-episode": pairs of one episode are neither positives nor negatives, so that
            what is constant within an episode (its colours, its camera) cannot help to tell pairs apart.
        weighting: "soft" (the paper), or "hard": each positive counts alike (fig. 4a).
        views: random views of each image (the paper: 1). With more, other views of an anchor's own image are positives
            of weight 1, and all views of a positive are positives.
        queue: features of so many images of the batches before that are contrasted as well, without gradient (MoCo,
            arXiv 1911.05722); the paper: 0. Weights between them and the batch come from their actions, as within it.
        learned_temperature: train tau with the encoder, from ``temperature``, held within 0.01..1.
    """

    name = "class"
    label = "CLASS"
    about = "soft InfoNCE: what leads to similar action sequences lies close (eq. 1)"
    recipe = Recipe(160, 100, None)
    needs_similarity = True

    temperature: float = 0.05
    reduction: Literal["anchors", "batch"] = "anchors"
    pairs: Literal["all", "cross-episode"] = "all"
    weighting: Literal["soft", "hard"] = "soft"
    views: int = 1  # type: ignore[misc]
    queue: int = 0
    learned_temperature: bool = False

    def __post_init__(self) -> None:
        check_names(self)
        check_range(self, "temperature", above=0, below=math.inf)
        check_range(self, "views", least=1)
        check_range(self, "queue", least=0)
        if self.learned_temperature and not TAU_RANGE[0] <= self.temperature <= TAU_RANGE[1]:
            raise ConfigError(
                f"a learned temperature is held within {TAU_RANGE[0]}..{TAU_RANGE[1]}; it cannot start from "
                f"{self.temperature}."
            )


@dataclass(frozen=True)
class TCNConfig(ObjectiveConfig):
    """Settings of the objective; the defaults are the repository's.

    Attributes:
        margin: by how much d of the negative shall exceed d of the positive.
        scale: length of the embeddings, so that d lies within 0..4 scale^2.
        positive_margin: steps that the positive is away from the anchor at most.
        negative_margin: steps that the negative is away from the anchor at least.
    """

    name = "tcn"
    label = "TCN"
    about = "triplets within an episode: near in time against far (1704.06888)"
    recipe = Recipe(64, 200, 1e-4)
    companions = 2
    needs_actions = False

    margin: float = 2.0
    scale: float = 10.0
    positive_margin: int = 10
    negative_margin: int = 30

    def __post_init__(self) -> None:
        check_range(self, "margin", least=0, below=math.inf)
        check_range(self, "scale", above=0, below=math.inf)
        if not 1 <= self.positive_margin < self.negative_margin:
            raise ConfigError(
                f"expected 1 <= positive_margin < negative_margin, got positive_margin {self.positive_margin} and "
                f"negative_margin {self.negative_margin}: a negative must be farther away than every positive."
            )


@dataclass(frozen=True)
class BYOLConfig(ObjectiveConfig):
    """Settings of the objective; the defaults are the repository's.

    Attributes:
        hidden: width of the hidden layer of projector and predictor.
        projection: size of projections and predictions.
        decay: of the target network, its projector included; constant.
    """

    name = "byol"
    label = "VINN"
    about = "two views of an image predict each other (VINN, 2112.01511)"
    recipe = Recipe(64, 200, 1e-4)
    views = 2
    needs_actions = False

    hidden: int = 4096
    projection: int = 256
    decay: float = 0.99

    @property
    def target_decay(self) -> float | None:
        """Of the encoder that makes the targets."""
        return self.decay

    def __post_init__(self) -> None:
        check_range(self, "hidden", "projection", least=1)
        check_range(self, "decay", least=0, below=1)


@dataclass(frozen=True)
class DynaMoConfig(ObjectiveConfig):
    """Settings of the objective. The defaults are CLASS's table 6, and the released code's for LIBERO.

    Attributes:
        context: T, frames of a context; at least 2, one transition.
        latent_dim: of z (table 6 and LIBERO: 32; the authors on Push-T: 8).
        layers, heads, width: of each of the two transformers.
        covariance_weight: of the covariance penalty.
        covariance: "mean" over the off-diagonal entries (released code), or "sum": 1/F of their sum (the paper).
        target: what is predicted: "stop-gradient": the features themselves, or "ema": those of an averaged encoder.
        decay: of the averaged encoder, with "ema".
    """

    name = "dynamo"
    label = "DynaMo"
    about = "inverse and forward dynamics of features in short contexts (2409.12192)"
    together = True
    needs_actions = False

    context: int = 5
    latent_dim: int = 32
    layers: int = 6
    heads: int = 6
    width: int = 120
    covariance_weight: float = 0.04
    covariance: Literal["mean", "sum"] = "mean"
    target: Literal["stop-gradient", "ema"] = "stop-gradient"
    decay: float = 0.99

    @property
    def companions(self) -> int:  # type: ignore[override]
        """The frames of the context after the anchor."""
        return self.context - 1

    @property
    def target_decay(self) -> float | None:
        """Of the averaged encoder, where it makes the targets."""
        return self.decay if self.target == "ema" else None

    def __post_init__(self) -> None:
        check_names(self)
        check_range(self, "context", least=2)
        check_range(self, "latent_dim", "layers", "heads", "width", least=1)
        check_range(self, "covariance_weight", least=0, below=math.inf)
        check_range(self, "decay", least=0, below=1)
        if self.width % self.heads:
            raise ConfigError(
                f"attention divides the width into equal heads, which a width of {self.width} and {self.heads} heads "
                f"do not allow; choose a multiple of {self.heads}."
            )


@dataclass(frozen=True)
class InverseDynamicsConfig(ObjectiveConfig):
    """Settings of the objective.

    Attributes:
        horizon: h, steps between the two frames; all h actions between them are predicted.
        hidden: width of the two hidden layers.
    """

    name = "inverse-dynamics"
    label = "Inverse dynamics"
    about = "predict the actions between two images"
    companions = 1
    together = True

    horizon: int = 1
    hidden: int = 256

    def __post_init__(self) -> None:
        check_range(self, "horizon", "hidden", least=1)


@dataclass(frozen=True)
class TimeContrastiveConfig(ObjectiveConfig):
    """Settings of the objective.

    Attributes:
        similarity: "l2": negative L2 distance of the features (R3M), or "cosine".
        temperature: that similarities are divided by (R3M: 1). For "cosine", which lies within -1..1, 0.1 is usual.
        negatives: rows of other episodes that each of the two terms contrasts with (R3M: 3); 0: all of the batch.
        window: largest distance in steps of k after i; 0: the whole rest of the episode (R3M).
    """

    name = "time-contrastive"
    label = "Time-contrastive"
    about = "InfoNCE across time within and between episodes (R3M's core term, 2203.12601)"
    companions = 2
    needs_actions = False

    similarity: Literal["l2", "cosine"] = "l2"
    temperature: float = 1.0
    negatives: int = 3
    window: int = 0

    def __post_init__(self) -> None:
        check_names(self)
        check_range(self, "temperature", above=0, below=math.inf)
        check_range(self, "negatives", least=0)
        if self.window != 0 and self.window < 2:
            raise ConfigError(
                f"expected a window of 0 (the rest of the episode) or at least 2, for i < j < k, got {self.window}."
            )


@dataclass(frozen=True)
class NoneConfig(ObjectiveConfig):
    """Settings of no training; the encoder's ``init`` decides its weights."""

    name = "none"
    label = "Initial weights"
    about = "no training: those of the encoder's init"
    recipe = Recipe(160, 0, None)
    needs_actions = False


@dataclass(frozen=True)
class CombinedConfig(ObjectiveConfig):
    """Settings of a sum of objectives, written ``class+0.1*byol``.

    Attributes:
        parts: settings of each, of different kinds.
        weights: a factor for each.
    """

    name = "combined"

    parts: tuple[ObjectiveConfig, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(names) < 2 or len(set(names)) < len(names) or self.name in names:
            raise ConfigError(f"expected at least two different objectives to combine, got {names or 'none'}.")
        if "none" in names:
            raise ConfigError(f"objective 'none' learns nothing, so it cannot be part of a sum, got {names}.")
        if len(self.weights) != len(names) or not all(0 < weight < math.inf for weight in self.weights):
            raise ConfigError(f"expected {len(names)} weights above 0 for {names}, got {list(self.weights)}.")
        decays = sorted({part.target_decay for part in self.parts if part.target_decay is not None})
        if len(decays) > 1:
            raise ConfigError(
                f"objectives that are combined share one target network, but these ask for decays of {decays}."
            )
        facts = {
            "recipe": self.parts[0].recipe,
            "companions": sum(part.companions for part in self.parts),  # side by side
            "views": max(part.views for part in self.parts),
            "together": any(part.together for part in self.parts),
            "needs_similarity": any(part.needs_similarity for part in self.parts),
            "needs_actions": any(part.needs_actions for part in self.parts),
        }
        for name, value in facts.items():
            object.__setattr__(self, name, value)

    @property
    def written(self) -> str:
        """``class+0.1*byol``."""
        terms = zip(self.parts, self.weights, strict=True)
        return "+".join(part.name if weight == 1 else f"{weight:g}*{part.name}" for part, weight in terms)

    def describe(self) -> str:
        """All parts with what differs from their defaults."""
        return " + ".join(part.describe() for part in self.parts)

    @property
    def terms(self) -> tuple[ObjectiveConfig, ...]:
        """The parts."""
        return self.parts

    @property
    def target_decay(self) -> float | None:
        """That of the parts which have one."""
        return next((part.target_decay for part in self.parts if part.target_decay is not None), None)
