"""Settings of policies, and of how they are called, without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from classact.data.rate import STEPS
from classact.errors import ConfigError, UnknownNameError, choose
from classact.policies.speed import check_reach
from classact.utils.codec import ADDED, to_json, without
from classact.utils.limits import check_range

BACKENDS = ("auto", "torch", "faiss")  # how neighbours are searched, see classact.policies.search.make_search
NPROBE = 32  # lists that an index of faiss looks at where its name does not say


@dataclass(frozen=True)
class RetrievalConfig:
    """Settings of retrieval.

    Attributes:
        k: k_nn, neighbours averaged (table 4: 64).
        temperature: tau_nn of the softmax over cosine similarities (table 5: 0.001 / 0.002 for Push-T).
        chunk_length: T_a, actions executed open-loop per retrieval (table 4: 16).
        horizon: T_p, actions in a chunk; at least ``chunk_length``.
        speed: demonstrated steps per executed one: 2 plays demonstrations twice as fast. 1 is the paper's.
        min_actions: timesteps with fewer demonstrated actions left are not retrieved. 1 keeps all (the paper); more
            keeps the policy from resting just short of the goal where demonstrations end on arrival, because their last
            chunks are mostly the repeated last action.
        proprioception_weight: factor on the normalised proprioception beside image features before both are jointly
            scaled to length 1. 1 is the paper's: a few numbers in [-1, 1] hardly count beside hundreds of features.
            Does not affect the encoder, so a saved policy's can be changed.
        revisit: cosine with a decision of the episode T_a steps ago or earlier above which an observation counts as one
            where it has been before, as it rests or goes round in circles; the n-th time the nearest demonstrations but
            n - 1 are passed over, and one is followed, instead of an average of them. None: never (the paper).
        search: how neighbours are searched: "auto", "torch" (exact) or "faiss", as in "faiss:IVF1024,Flat". All but
            approximate indexes find the same up to rounding.
    """

    k: int = 64
    temperature: float = 0.001
    chunk_length: int = field(default=16, metadata=STEPS)
    horizon: int = field(default=16, metadata=STEPS)
    speed: float = field(default=1.0, metadata=ADDED)
    min_actions: int = field(default=1, metadata=STEPS)
    proprioception_weight: float = 1.0
    revisit: float | None = None
    search: str = "auto"

    def __post_init__(self) -> None:
        check_range(self, "k", least=1)
        check_range(self, "temperature", above=0)
        check_range(self, "speed", above=0, below=math.inf)
        check_range(self, "proprioception_weight", least=0, below=math.inf)
        check_range(self, "revisit", above=-1, below=1)
        for name in ("min_actions", "chunk_length"):
            if not 1 <= (value := getattr(self, name)) <= self.horizon:
                raise ConfigError(f"expected 1 <= {name} <= horizon, got {name} {value}, horizon {self.horizon}.")
        check_reach(self.chunk_length, self.speed, self.horizon)
        parse_backend(self.search)

    def acting_settings(self) -> dict[str, Any]:
        """What decides actions beside chunk length and speed; of searches only an approximate one does."""
        chosen = without(to_json(self), "chunk_length", "speed", "search")
        return chosen if is_exact(self.search) else {**chosen, "search": self.search}


@dataclass(frozen=True)
class NoveltyConfig:
    """Settings of the score.

    Attributes:
        m: nearest timesteps whose cosines are averaged. On Push-T images false alarms are as rare for 1 as for 32;
            fewer timesteps notice more of what changes in a part of the image only. 4 are nearly as sharp as one, which
            would trust a single odd timestep of the bank.
        alpha: the largest chance that a usual episode raises any alarm.
    """

    m: int = 4
    alpha: float = 0.1

    def __post_init__(self) -> None:
        check_range(self, "m", least=1)
        check_range(self, "alpha", above=0, below=1)


@dataclass(frozen=True)
class ParametricConfig:
    """Settings of acting.

    Attributes:
        chunk_length: T_a, actions executed open-loop per decision (table 7: 12).
        history: T_o, observations that a decision is made from (table 7: 1).
        seed: of the noise that a head starts from.
        bf16: run the encoder's backbone in bfloat16.
        speed: demonstrated steps per executed one: 2 plays chunks twice as fast. 1 is the paper's.
    """

    chunk_length: int = 12
    history: int = 1
    seed: int = 0
    bf16: bool = False
    speed: float = field(default=1.0, metadata=ADDED)

    def __post_init__(self) -> None:
        check_range(self, "chunk_length", "history", least=1)
        check_range(self, "speed", above=0, below=math.inf)
        check_range(self, "seed", least=0)


@dataclass(frozen=True)
class ControlConfig:
    """How much of a chunk is executed, and whether overlapping chunks are averaged.

    Attributes:
        execute: actions of a chunk that are executed before the next decision; None for all T_a.
        ensemble: m of temporal ensembling, at least 0; None for none. 0 weights all proposals alike, more favours older
            ones (ACT: 0.01).
    """

    execute: int | None = None
    ensemble: float | None = None

    def __post_init__(self) -> None:
        if self.execute is not None and self.execute < 1:
            raise ConfigError(f"expected execute >= 1 or None for whole chunks, got {self.execute}.")
        if self.ensemble is None:
            return
        if not (self.ensemble >= 0 and math.isfinite(self.ensemble)):
            raise ConfigError(f"expected ensemble to be a finite number of at least 0 or None, got {self.ensemble}.")
        if self.execute is None:
            raise ConfigError(
                f"ensemble {self.ensemble} has no effect where whole chunks are executed, for then no two propose an "
                f"action for one step. Set execute below the policy's T_a, or leave ensemble out."
            )

    def describe(self) -> str:
        """In words, for cards and messages."""
        if self.execute is None:
            return "whole chunks"
        averaged = "" if self.ensemble is None else f", averaged over chunks (ensemble {self.ensemble:g})"
        return f"{self.execute} of a chunk{averaged}"

    def check(self, length: int, name: str) -> None:
        """Refuse settings that do not suit chunks of ``length`` actions (T_a) of policy ``name``."""
        if self.execute is not None and self.execute > length:
            raise ConfigError(
                f"execute {self.execute} asked of policy {name!r}, whose chunks hold T_a = {length} actions. Execute "
                f"at most {length}."
            )
        if self.ensemble is not None and self.execute == length:
            raise ConfigError(
                f"ensemble {self.ensemble} has no effect with execute {self.execute} = T_a of policy {name!r}: no two "
                f"chunks propose an action for one step. Set execute to at most {length - 1}, or leave ensemble out."
            )


def parse_backend(backend: str) -> tuple[str, str, int]:
    """(one of :data:`BACKENDS`, faiss's index, lists looked at) of "auto", "torch", "faiss", "faiss:FACTORY" or
    "faiss:FACTORY@NPROBE"; a ConfigError for anything else.
    """
    name, colon, rest = backend.partition(":")
    factory, at, lists = rest.partition("@")
    counted = not at or (lists.isascii() and lists.isdigit() and int(lists) > 0)
    if name not in BACKENDS or not counted or (colon and (name != "faiss" or not factory)):
        raise UnknownNameError(choose("search", backend, (*BACKENDS, "faiss:FACTORY", "faiss:FACTORY@NPROBE")))
    return name, factory or "Flat", int(lists or NPROBE)


def is_exact(backend: str) -> bool:
    """Whether a backend finds the nearest rows up to rounding: all but faiss indexes other than "Flat"."""
    return parse_backend(backend)[1] == "Flat"
