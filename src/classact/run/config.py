"""Settings of runs and of their heads, without torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from classact.data.joined import check_weights
from classact.data.readers import EMBEDDED
from classact.data.readers.hub import is_hub_name
from classact.data.readers.selection import chosen_episodes
from classact.errors import ConfigError, UnknownNameError, choose
from classact.evaluation.config import EvaluationConfig
from classact.policies.config import NoveltyConfig, RetrievalConfig, is_exact
from classact.run.stand_ins import ACTIONS, STAND_INS, known
from classact.train.config import INCIDENTAL, FinetuneConfig, PretrainConfig, describe
from classact.utils.codec import ADDED
from classact.utils.hub import hub_name
from classact.utils.limits import check_range
from classact.utils.storage import slug

RANDOM = "random"  # how tables name an encoder of random weights that a run is about

NON_IDENTITY_FIELDS = (
    *("data", "evaluation", "baselines", "similarity", "intermediate_episodes", "intermediate_retrieval", "layout"),
    *("latent_actions", "features"),
    *("frames.workers", "retrieval.search"),
    *(f"pretrain.{name}" for name in INCIDENTAL),
)
"""Settings of a run that do not decide what is learned: evaluation, processes, and paths, whose content is
compared by itself."""

KEPT_FIELDS = ("similarity", "intermediate_retrieval", "layout", "latent_actions", "features")
"""Those of them that keep their initial values where a later call names none."""

UNTRAINED = {"training": "none", "augmentation": "none"}  # labels of what was not trained
OWN_STARTS = ("run", "scratch")  # what a head's training starts from, besides folders of other encoders


@dataclass(frozen=True)
class FramesConfig:
    """Which images of the demonstrations are used.

    Attributes:
        source: "recorded", "rendered", or "auto": recorded images where there are any of this shift, and not drawn by
            the simulator at another size than in evaluations; else rendered.
        simulator: what renders, from the demonstrations' states.
        shift: visual shift to render under; any but the plain appearance means rendering.
        render_size: side in pixels at which the simulator draws, as at evaluation time.
        seed: of the episodes' appearances.
        workers: rendering processes; 0: one per core.
        renderings: how often the demonstrations are rendered, each time with appearances of their own (cameras,
            colours); every batch shows each of its states in all of them, which are positives of each other, for what
            follows is the same. Disk space and the time to render grow with it, images per training do not.
    """

    source: Literal["auto", "recorded", "rendered"] = "auto"
    simulator: str = "pusht"
    shift: str = "fixed-color"
    render_size: int = 96
    seed: int = 0
    workers: int = 0
    renderings: int = field(default=1, metadata=ADDED)

    def __post_init__(self) -> None:
        check_range(self, "renderings", least=1)


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
        data: a path in a known format, or "pusht-expert" for the demonstrations that come with classact; or several,
            that are learned from together.
        data_weights: how often steps of each of several data sets are drawn, relative to the others; () for all alike.
        episodes: only the first so many demonstrations, or those of these numbers, as in 0:50,60.
        fps: steps per second of them, fewer than recorded; None: all.
        frames: which images.
        pretrain: representation learning.
        retrieval: acting.
        evaluation: rollouts.
        baselines: evaluate retrieval with an untrained encoder and with the true state as latent, too.
        similarity: folder written by ``classact similarity`` for these data and settings, whose threshold and CDF are
            reused.
        keys: proprioception keys that the policy sees, of those that the data declare; None: all.
        heldout: the last so many demonstrations are not trained on; the novelty score is calibrated on them. Its bound
            holds for episodes like them: shuffle files sorted by task, operator or day. 0: each is left out of the bank
            in turn, which is approximate, because the encoder was trained on all.
        intermediate_episodes: unseen initial states per evaluation during training (``pretrain.evaluations`` of them).
        intermediate_retrieval: how these act; None: as the run does.
        novelty: of the score that decisions carry.
        layout: JSON file that says which array of the data is what, or its name, as in umi. None: what the data
            declare, or their arrays tell.
        latent_actions: folder of a latent action model (classact latent-actions), for demonstrations that carry no
            actions.
        labelled: the actions of these demonstrations alone are used: the first so many, or numbers as in 0:50,60; those
            of the others are left unread. None: all that carry any.
        learn_from: what stands for actions where the objective learns from them (CLASS compares sequences of it):
            "actions", or something that demonstrations without actions have, too (docs/latent-actions.md). None: latent
            actions where a model is named, else actions.
        features: folder of an encoder, for ``learn_from`` "feature-change".
        act_from: what policies do: "labelled": what was done in the demonstrations that carry actions, or "decoded":
            what latent actions of all demonstrations are decoded to. None: decoded where a model is named, else
            labelled.
    """

    data: str | tuple[str, ...] = "pusht-expert"
    data_weights: tuple[float, ...] = field(default=(), metadata=ADDED)
    episodes: int | str | None = None
    fps: float | None = field(default=None, metadata=ADDED)
    frames: FramesConfig = field(default_factory=FramesConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    baselines: bool = True
    similarity: str | None = None
    keys: tuple[str, ...] | None = None
    heldout: int = 0
    intermediate_episodes: int = 50
    intermediate_retrieval: RetrievalConfig | None = None
    novelty: NoveltyConfig = field(default_factory=NoveltyConfig)
    layout: str | None = None
    latent_actions: str | None = field(default=None, metadata=ADDED)
    labelled: int | str | None = field(default=None, metadata=ADDED)
    learn_from: str | None = field(default=None, metadata=ADDED)
    features: str | None = field(default=None, metadata=ADDED)
    act_from: Literal["labelled", "decoded"] | None = field(default=None, metadata=ADDED)

    def __post_init__(self) -> None:
        self._check_actions()
        if not isinstance(self.data, str):
            object.__setattr__(self, "data", self.data[0] if len(self.data) == 1 else tuple(self.data))
        check_weights(self.data_weights, len(self.sources))
        if self.heldout < 0 or self.intermediate_episodes < 1:
            raise ConfigError(
                f"expected heldout >= 0 and intermediate_episodes >= 1, got {self.heldout} and "
                f"{self.intermediate_episodes}."
            )
        if not self.pretrain.encoder.cameras and self.pretrain.objective.written != "none":
            raise ConfigError(
                f"objective {self.pretrain.objective.written!r} learns what images mean, but no camera is to be seen. "
                f"Name one (--cameras), or learn nothing (--objective none) before a head sees numbers alone."
            )
        if not self.heldout and not is_exact(self.retrieval.search):
            raise ConfigError(
                f"search {self.retrieval.search!r} is approximate, and leaving each demonstration out of the bank in "
                f"turn needs an exact one to calibrate novelty. Hold demonstrations out (heldout), or search exactly."
            )

    def _check_actions(self) -> None:
        """Refuse to learn, or to act, from what is not named, and to name what nothing reads."""
        if self.learn_from not in (None, *known()):
            raise UnknownNameError(choose("stand-in for actions", str(self.learn_from), known()))
        if self.act_from not in (None, "labelled", "decoded"):
            raise UnknownNameError(choose("what policies act from", self.act_from, ("labelled", "decoded")))
        reads = "" if self.learns_from == ACTIONS else STAND_INS[self.learns_from].reads
        if reads and getattr(self, reads) is None:
            raise ConfigError(
                f"to learn from {self.learns_from} needs what it is made with: name its folder (--"
                f"{reads.replace('_', '-')})."
            )
        if self.features is not None and reads != "features":
            raise ConfigError(
                f"features are named, but {self.learns_from} is learned from (--learn-from feature-change)."
            )
        if self.act_from == "decoded" and self.latent_actions is None:
            raise ConfigError("to act from decoded latent actions needs a model of them: name it (--latent-actions).")

    @property
    def learns_from(self) -> str:
        """``learn_from``, with what None means."""
        return self.learn_from or (ACTIONS if self.latent_actions is None else "latent-actions")

    @property
    def acts_from(self) -> Literal["labelled", "decoded"]:
        """``act_from``, with what None means."""
        return self.act_from or ("labelled" if self.latent_actions is None else "decoded")

    @property
    def sources(self) -> tuple[str, ...]:
        """The data sets, one or several."""
        return (self.data,) if isinstance(self.data, str) else self.data

    @property
    def label(self) -> str:
        """How tables name the run's encoder: by its objective, or if untrained by its initial weights."""
        name, init = self.pretrain.objective.written, self.pretrain.encoder.init
        return name if name != "none" else {"scratch": RANDOM}.get(init, init)

    def numbers(self, count: int) -> list[int]:
        """Of each of the run's ``count`` demonstrations its number in the data set, of which it may read only some; of
        several data sets its place among all.
        """
        if isinstance(self.episodes, str) and isinstance(self.data, str):
            return chosen_episodes(self.episodes, sys.maxsize, self.data)[:count]
        return list(range(count))

    @property
    def labels(self) -> dict[str, str]:
        """How tables label retrieval with the run's encoder."""
        if self.pretrain.objective.written == "none":
            return dict(UNTRAINED)
        return {"training": "representation only", "augmentation": describe(self.pretrain.augment)}


@dataclass(frozen=True)
class HeadRunConfig:
    """All settings of a head of a run.

    Attributes:
        finetune: training.
        start: initial encoder: "run" (the run's own), "scratch" (the paper's behaviour cloning baseline: the run's
            architecture with its initial weights), or the folder of another encoder.
        evaluation: rollouts; None: as the head was started with, else as the run is evaluated.
        intermediate_episodes: unseen initial states per evaluation during training.
    """

    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    start: str = "run"
    evaluation: EvaluationConfig | None = None
    intermediate_episodes: int = 50

    def __post_init__(self) -> None:
        if self.intermediate_episodes < 1:
            raise ConfigError(f"expected intermediate_episodes >= 1, got {self.intermediate_episodes}.")
        if self.start == "scratch" and (self.finetune.frozen or self.finetune.weights == "last"):
            other = "frozen trains no encoder" if self.finetune.frozen else "weights 'last' are of a pre-training"
            raise ConfigError(f"training from scratch starts from initial weights, but {other}. Choose one of the two.")
        if self.start not in OWN_STARTS:
            # The name of one on the hub stays as it is.
            object.__setattr__(self, "start", self.start if hub_name(self.start) else whole_path(self.start))

    @property
    def name(self) -> str:
        """Of the head's folder: ``diffusion``, ``mlp-frozen``, ``diffusion-scratch``, ``mlp-hsv``."""
        parts = [self.finetune.head.name]
        if self.start != "run":
            parts.append("scratch" if self.start == "scratch" else slug(self.label("")))
        if self.finetune.frozen:
            parts.append("frozen")
        augment = self.finetune.augment
        if augment is not None and augment.color != "none":
            parts.append(augment.color)
        return "-".join(parts)

    def label(self, learned: str) -> str:
        """How tables name the encoder that training starts from; ``learned`` is their name of the run's."""
        path = Path(self.start)
        return {"run": learned, "scratch": "scratch"}.get(self.start, f"other: {path.parent.name}/{path.name}")

    @property
    def labels(self) -> dict[str, str]:
        """How tables label the trained head."""
        return self.finetune.labels(scratch=self.start == "scratch")


def whole_path(source: str) -> str:
    """An absolute path; embedded names stay."""
    return source if source in EMBEDDED else os.path.abspath(os.path.expanduser(source))  # noqa: PTH100, PTH111


def whole_source(data: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """Absolute paths of data; embedded names and those of the hub stay."""
    if not isinstance(data, str):
        return tuple(str(whole_source(one)) for one in data)
    return data if is_hub_name(data) else whole_path(data)
