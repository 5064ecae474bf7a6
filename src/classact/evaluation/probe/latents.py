"""All metrics of a representation that need only its latents and the actions: no images, no simulator, no run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from classact.data.actions import ActionSpace
from classact.data.copies import first_copies
from classact.data.normalize import MinMax
from classact.data.types import FloatArray, IntArray
from classact.data.windows import window_indices
from classact.errors import ConfigError, DataError
from classact.evaluation.probe.metrics import (
    Metric,
    alignment,
    all_squared_distances,
    average_chunks,
    chunk_errors,
    effective_rank_estimate,
    episode_mean,
    ndcg,
    other_episode_share,
    pair_mean,
    spearman,
    squared_distances,
    uniformity,
)
from classact.policies.latents import unit
from classact.policies.novelty import HELD_OUT, LEFT_OUT
from classact.policies.search import ExactSearch
from classact.similarity import DistanceDistribution, SimilarityConfig, WindowStream, dtw_pairwise
from classact.similarity.model import sample_distances, scale_rotation
from classact.similarity.pairwise import stream_pairs
from classact.utils.limits import check_range

Progress = Callable[..., None]  # called with (done, total, what is being done)
RANKED = 16  # k of NDCG and of the share of neighbours from other episodes
LEFT_OUT_EPISODES = 50  # episodes that queries come from where none are held out
RANDOM_CHUNKS = 16  # random chunks per query, whose errors are averaged
CORRELATION_RESAMPLES = 300
_BYTES = 1 << 27  # of the distances between a block of queries and the bank
# Each part of the measurement has its own random numbers, so that none depends on which others were measured.
_QUERIES, _ANCHORS, _PAIRS, _STEPS, _INTERVALS = range(5)


@dataclass(frozen=True)
class ProbeConfig:
    """Settings of a probe.

    Attributes:
        ks: k_nn, numbers of neighbours whose chunks are averaged; lowered to the bank's size.
        temperature: tau_nn of the softmax over their cosines.
        min_actions: timesteps with fewer demonstrated actions left are not retrieved.
        similarity: what action distance and positives are: T_p, metric, K.
        queries: sample of held-out steps that are retrieved for; all where there are fewer.
        pairs: pairs of a query and a training step, of which distances are correlated.
        steps: training steps of which neighbours, alignment and uniformity are measured.
        states: that are drawn twice, to see whether they are recognised.
        seed: of all samples and intervals. The steps depend on it and on the episodes alone, so they are the same for
            all encoders.
    """

    ks: tuple[int, ...] = (1, 4, 16, 64)
    temperature: float = 0.001
    min_actions: int = 1
    similarity: SimilarityConfig = field(default_factory=SimilarityConfig)
    queries: int = 2000
    pairs: int = 100_000
    steps: int = 2000
    states: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ks or min(self.ks) < 1:
            raise ConfigError(f"expected ks >= 1, got {self.ks}.")
        check_range(self, "temperature", above=0)
        check_range(self, "min_actions", "queries", "states", least=1)
        check_range(self, "pairs", "steps", least=2)
        check_range(self, "seed", least=0)

    def rng(self, stream: int) -> np.random.Generator:
        """Random numbers for one part of the measurement."""
        return np.random.default_rng([self.seed, stream])


@dataclass(frozen=True)
class Encoded:
    """Steps of episodes with one or several representations.

    Attributes:
        latents: name -> (N, d) latent of every step, scaled to length 1 if necessary.
        actions: (N, D) unnormalised.
        episode_ends: (E,) int64, cumulative.
    """

    latents: Mapping[str, FloatArray]
    actions: FloatArray
    episode_ends: IntArray

    def __post_init__(self) -> None:
        steps = int(self.episode_ends[-1])
        if self.actions.ndim != 2 or len(self.actions) != steps:
            raise DataError(f"expected actions of shape ({steps}, D), one row per step, got {self.actions.shape}.")
        if not self.latents:
            raise DataError("expected at least one representation, got none.")
        for name, z in self.latents.items():
            if z.ndim != 2 or len(z) != steps:
                raise DataError(f"expected latents {name!r} of shape ({steps}, d), one row per step, got {z.shape}.")
            if not (finite := np.isfinite(z).all(axis=1)).all():
                raise DataError(
                    f"latents {name!r}: {int((~finite).sum())} of {steps} are NaN or infinite, the first of step "
                    f"{int(np.argmin(finite))}. Check the encoder's weights."
                )
        object.__setattr__(self, "latents", {name: _unit(z) for name, z in self.latents.items()})

    @cached_property
    def groups(self) -> IntArray:
        """(E,) number of each episode, shared by copies (:func:`classact.data.copies.first_copies`)."""
        return np.unique(first_copies(self.actions, self.episode_ends), return_inverse=True)[1]

    def episodes(self) -> IntArray:
        """(N,) episode of each step; copies are one."""
        return np.repeat(self.groups, np.diff(self.episode_ends, prepend=0))

    def sorted(self) -> Encoded:
        """The same with copies adjacent; itself where they are, or there are none."""
        if (np.diff(self.groups) >= 0).all():
            return self
        order = np.argsort(self.groups, kind="stable")
        steps = np.argsort(self.episodes(), kind="stable")
        ends = np.cumsum(np.diff(self.episode_ends, prepend=0)[order])
        return Encoded({name: z[steps] for name, z in self.latents.items()}, self.actions[steps], ends)


def _unit(z: FloatArray) -> FloatArray:
    """The rows at length 1; not copied if they already are."""
    squares = np.einsum("nd,nd->n", z, z)
    return z if z.dtype == np.float32 and (np.abs(squares - 1) < 1e-5).all() else unit(z)


@dataclass(frozen=True)
class Queries:
    """Steps that are retrieved for, and the bank's rows that they may find.

    Attributes:
        kind: "held-out": of episodes outside the bank; "leave-one-out": of the bank's, each without its own episode.
        steps: (Q,) of the held-out steps, or of the training steps, ascending.
        episodes: (Q,) that they are of.
        without: (Q, 2) retrievable rows [from, to) of the own episode; empty ranges where held out.
        bank: (R,) training steps that may be retrieved.
    """

    kind: str
    steps: IntArray
    episodes: IntArray
    without: IntArray
    bank: IntArray

    @property
    def available(self) -> int:
        """Neighbours that every query can have."""
        return len(self.bank) - int((self.without[:, 1] - self.without[:, 0]).max(initial=0))


def choose_queries(
    training_ends: IntArray, heldout_ends: IntArray | None, config: ProbeConfig, groups: IntArray | None = None
) -> Queries:
    """The sample of steps that are retrieved for; the same for every representation.

    Args:
        training_ends: (E,) of the bank's episodes.
        heldout_ends: (H,) of the held-out episodes; None: a sample of the bank's episodes is left out in turn.
        groups: (E,) or (H,) number of each of the query episodes, shared by adjacent copies. None: no copies.
    """
    rng = config.rng(_QUERIES)
    left = np.repeat(training_ends, np.diff(training_ends, prepend=0)) - np.arange(int(training_ends[-1]))
    bank = np.flatnonzero(left >= config.min_actions)
    ends = training_ends if heldout_ends is None else heldout_ends
    if groups is not None:
        ends = ends[np.flatnonzero(np.append(np.diff(groups), 1))]
    lengths = np.diff(ends, prepend=0)
    episode = np.repeat(np.arange(len(ends)), lengths)
    candidates = np.arange(len(episode))
    if heldout_ends is None:
        if len(ends) < 2:
            copies = f", not counting {len(training_ends) - 1} of the same actions" if len(training_ends) > 1 else ""
            raise ConfigError(
                f"leaving an episode out needs at least 2 episodes, there is 1{copies}. Hold demonstrations out."
            )
        chosen = rng.choice(len(ends), min(LEFT_OUT_EPISODES, len(ends)), replace=False)
        candidates = candidates[np.isin(episode, chosen)]
    steps = np.sort(rng.choice(candidates, min(config.queries, len(candidates)), replace=False))
    without = np.zeros((len(steps), 2), np.int64)
    if heldout_ends is None:
        bounds = np.searchsorted(bank, np.stack([ends - lengths, ends], axis=1))
        without = bounds[episode[steps]]
    queries = Queries(LEFT_OUT if heldout_ends is None else HELD_OUT, steps, episode[steps], without, bank)
    if queries.available < 1:
        raise ConfigError(
            f"no timestep of another episode has at least {config.min_actions} actions left. Lower min_actions, or add "
            f"demonstrations."
        )
    return queries


class _Actions:
    """What does not depend on the representation: windows, distances, and the errors of anchors."""

    def __init__(
        self, training: Encoded, asked: Encoded, queries: Queries, config: ProbeConfig, space: ActionSpace | None
    ) -> None:
        self.config, self.queries, self.space = config, queries, space
        self.similarity = config.similarity
        self.how: dict[str, Any] = {"cost": self.similarity.cost, "band": self.similarity.alignment_band}
        self.range = MinMax.fit(training.actions, 0.0 if space is None else space.magnitude())
        self.actions = training.actions
        self.bank = self.stream(training)
        self.asked = self.bank if asked is training else self.stream(asked)
        self.compared = self.asked.windows(queries.steps)  # (Q, T / stride, D)
        windows = window_indices(asked.episode_ends, self.similarity.horizon)[queries.steps]
        self.truth = self.scale(asked.actions)[windows]  # (Q, T, D)
        self.chunks = window_indices(training.episode_ends, self.similarity.horizon)  # (N, T)
        sampled = replace(self.similarity, estimate="sampled", pairs=min(self.similarity.pairs, 1_000_000))
        self.distribution = DistanceDistribution.fit(sample_distances(self.bank, sampled), sampled.quantile)

    def scale(self, actions: FloatArray) -> FloatArray:
        return scale_rotation(self.range.apply(actions), self.space, self.similarity.rotation_scale)

    def stream(self, steps: Encoded) -> WindowStream:
        own = self.similarity
        return WindowStream.build(self.scale(steps.actions), steps.episode_ends, own.horizon, own.stride)

    def demonstrated(self, rows: IntArray) -> FloatArray:
        """(..., T, D) unnormalised chunks of retrievable rows."""
        return self.actions[self.chunks[self.queries.bank[rows]]]

    def errors(self, predicted: FloatArray) -> tuple[FloatArray, FloatArray]:
        """DTW and L2 of (Q, T, D) unnormalised chunks."""
        # Chunks are of the data's steps, whatever is compared for similarity.
        band = replace(self.similarity, stride=1).alignment_band
        return chunk_errors(self.scale(predicted), self.truth, cost=self.similarity.cost, band=band)

    def random_rows(self) -> IntArray:
        """(Q, RANDOM_CHUNKS) retrievable rows, never of the own episode."""
        first, last = self.queries.without[:, :1], self.queries.without[:, 1:]
        own = last - first
        left = len(self.queries.bank) - own
        drawn = (self.config.rng(_ANCHORS).random((len(own), RANDOM_CHUNKS)) * left).astype(np.int64)
        drawn = np.minimum(drawn, left - 1)
        return np.asarray(drawn + np.where(drawn >= first, own, 0))

    def rank(
        self, found: Mapping[str, IntArray], progress: Callable[[int], None]
    ) -> tuple[dict[str, FloatArray], FloatArray, IntArray]:
        """Gains of the ``found`` retrievable rows, the largest gains there are, and the nearest row by DTW.

        Returns:
            name -> (Q, k) gains, (Q, k) largest gains first, and (Q,) retrievable rows.
        """
        k = next(iter(found.values())).shape[1]
        bank = self.bank.windows(self.queries.bank)
        Q = len(self.compared)
        gains = {name: np.empty((Q, k), np.float32) for name in found}
        ideal, nearest = np.empty((Q, k), np.float32), np.empty(Q, np.int64)
        at_once = max(1, _BYTES // (4 * len(bank)))
        for start in range(0, Q, at_once):
            part = slice(start, min(start + at_once, Q))
            d = dtw_pairwise(self.compared[part], bank, **self.how)
            for row, (low, high) in zip(d, self.queries.without[part], strict=True):
                row[low:high] = np.inf
            nearest[part] = d.argmin(axis=1)
            best = np.sort(np.partition(d, k - 1, axis=1)[:, :k], axis=1)
            ideal[part] = self.distribution.weights(best)
            for name, rows in found.items():
                gains[name][part] = self.distribution.weights(np.take_along_axis(d, rows[part], axis=1))
            progress(part.stop)
        return gains, ideal, nearest

    def pairs(self) -> tuple[IntArray, IntArray, FloatArray]:
        """(P,) numbers of queries, (P,) retrievable rows of other episodes, (P,) distances."""
        rng = self.config.rng(_PAIRS)
        left = rng.integers(0, len(self.queries.steps), self.config.pairs)
        first, last = self.queries.without[left].T
        own = last - first
        right = rng.integers(0, len(self.queries.bank) - own)
        right += np.where(right >= first, own, 0)
        if self.asked is self.bank:
            return left, right, stream_pairs(self.bank, self.queries.steps[left], self.queries.bank[right], **self.how)
        # Actions alone: such a copy of latents would be large.
        both = WindowStream(
            np.concatenate([self.bank.values, self.asked.values], axis=1),
            np.concatenate([self.bank.starts, self.asked.starts + self.bank.values.shape[1]]),
            self.bank.horizon,
        )
        asked = self.queries.steps[left] + len(self.bank)
        return left, right, stream_pairs(both, asked, self.queries.bank[right], **self.how)


def probe_latents(
    training: Encoded,
    heldout: Encoded | None = None,
    *,
    config: ProbeConfig | None = None,
    action_space: ActionSpace | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of one representation or several, from latents and actions alone.

    Args:
        training: steps that may be retrieved, on which action scaling and positives are fitted.
        heldout: query steps of other episodes, with the same representations. None: a sample of the training episodes,
            each left out of the bank for its own queries, though the encoder may have been trained on them.
        action_space: whose rotations are averaged, and scaled, as rotations; None: there are none.
        device: where cosines are computed.
        progress: called with (done, total, description).

    Returns:
        Plain JSON: "settings", "queries" (which), "positives" (threshold at K), "anchors" (errors without any
        representation) and "representations": name -> metrics, each with value, low and high.

    Raises:
        ConfigError: settings that the data do not allow: one episode only, or too few steps.
        DataError: held-out steps of other representations or action dimensions.
    """
    config = config or ProbeConfig()
    asked = heldout or training
    if asked.latents.keys() != training.latents.keys() or asked.actions.shape[1] != training.actions.shape[1]:
        raise DataError(
            f"expected held-out steps with representations {sorted(training.latents)} and actions of "
            f"{training.actions.shape[1]} dimensions as the training steps, got {sorted(asked.latents)} and "
            f"{asked.actions.shape[1]}."
        )
    for name, z in training.latents.items():
        if z.shape[1] != asked.latents[name].shape[1]:
            raise DataError(
                f"latents {name!r} of training steps have {z.shape[1]} dimensions, those of held-out steps "
                f"{asked.latents[name].shape[1]}."
            )
    begin = time.perf_counter()
    training = training.sorted()
    asked = training if heldout is None else asked.sorted()
    heldout_ends = None if heldout is None else asked.episode_ends
    queries = choose_queries(training.episode_ends, heldout_ends, config, asked.groups)
    total = len(queries.steps) + 4 * len(training.latents)
    done = 0

    def report(more: int, what: str) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total, what)

    actions = _Actions(training, asked, queries, config, action_space)
    ks = sorted({min(k, queries.available) for k in config.ks})
    ranked = min(RANKED, queries.available)
    found: dict[str, IntArray] = {}
    cosine: dict[str, FloatArray] = {}
    for name, z in training.latents.items():
        search = ExactSearch(z[queries.bank], device=device)
        own = queries.without if queries.kind == LEFT_OUT else None
        found[name], cosine[name] = search.search(asked.latents[name][queries.steps], max([*ks, ranked]), own)
        report(1, "search")
    before = done
    gains, ideal, nearest = actions.rank(
        {name: rows[:, :ranked] for name, rows in found.items()}, lambda at: report(before + at - done, "DTW")
    )
    pairs = actions.pairs()
    anchors = _anchor_errors(actions, nearest)
    sample = _training_sample(training, actions, config)
    representations = {}
    for name in training.latents:
        metrics: dict[str, Any] = {"dimensions": training.latents[name].shape[1]}
        metrics["action_error"] = [_retrieval_error(actions, found[name], cosine[name], k) for k in ks]
        report(1, name)
        metrics[f"ndcg@{ranked}"] = _mean(ndcg(gains[name], ideal), actions)
        metrics["rank_correlation"] = _correlation(training, asked, actions, pairs, name)
        report(1, name)
        metrics |= _geometry(training, sample, config, name, device)
        report(1, name)
        representations[name] = metrics
    return {
        "settings": asdict(config),
        "queries": {
            "kind": queries.kind,
            "steps": len(queries.steps),
            "episodes": len(np.unique(queries.episodes)),
            "bank": len(queries.bank),
            "bank_episodes": len(training.episode_ends),
            "with_positives": float((ideal[:, 0] > 0).mean()),
        },
        "positives": {"threshold": actions.distribution.threshold, "quantile": config.similarity.quantile},
        "anchors": anchors,
        "representations": representations,
        "seconds": round(time.perf_counter() - begin, 2),
    }


def _mean(values: Any, actions: _Actions) -> dict[str, float | None]:
    # The same resamples for all, so that encoders do not differ by their intervals' random numbers.
    return episode_mean(values, actions.queries.episodes, actions.config.rng(_INTERVALS)).to_json()


def _error(errors: tuple[Any, Any], actions: _Actions) -> dict[str, Any]:
    return {"dtw": _mean(errors[0], actions), "l2": _mean(errors[1], actions)}


def _retrieval_error(actions: _Actions, rows: IntArray, cosine: FloatArray, k: int) -> dict[str, Any]:
    chunk = average_chunks(actions.demonstrated(rows[:, :k]), cosine[:, :k], actions.config.temperature, actions.space)
    return {"k": k} | _error(actions.errors(chunk), actions)


def _anchor_errors(actions: _Actions, nearest: IntArray) -> dict[str, Any]:
    Q = len(nearest)
    rows = actions.random_rows()
    dtw, l2 = np.empty((2, Q, rows.shape[1]))
    for column, drawn in enumerate(rows.T):
        dtw[:, column], l2[:, column] = actions.errors(actions.demonstrated(drawn))
    bank = actions.demonstrated(np.arange(len(actions.queries.bank)))
    mean = average_chunks(bank[None], np.zeros((1, len(bank)), np.float32), 1.0, actions.space)
    return {
        "random": _error((dtw.mean(axis=1), l2.mean(axis=1)), actions),
        "mean": _error(actions.errors(np.repeat(mean, Q, axis=0)), actions),
        "nearest": _error(actions.errors(actions.demonstrated(nearest)), actions),
    }


def _correlation(
    training: Encoded, asked: Encoded, actions: _Actions, pairs: tuple[IntArray, IntArray, FloatArray], name: str
) -> dict[str, float | None]:
    queries, config = actions.queries, actions.config
    left, right, distance = pairs
    rows = queries.bank[right]
    # Half the squared distance of unit vectors is one minus their cosine.
    latent = squared_distances(asked.latents[name], queries.steps[left], rows, training.latents[name]) / 2
    episode = training.episodes()[rows]
    E = int(training.groups[-1]) + 1
    sizes: tuple[int, ...] = (E,)
    own = queries.episodes[left]
    if asked is not training:
        sizes, own = (E, int(asked.groups[-1]) + 1), own + E
    rng = config.rng(_INTERVALS)
    return spearman(latent, distance, own, episode, sizes, rng, resamples=CORRELATION_RESAMPLES).to_json()


@dataclass(frozen=True)
class _Sample:
    """Training steps (S,), their episodes, and the positive pairs (P,) among them, as numbers of the sample."""

    rows: IntArray
    episodes: IntArray
    left: IntArray
    right: IntArray


def _training_sample(training: Encoded, actions: _Actions, config: ProbeConfig) -> _Sample:
    rng = config.rng(_STEPS)
    N = len(training.actions)
    rows = np.sort(rng.choice(N, min(config.steps, N), replace=False))
    d = dtw_pairwise(actions.bank.windows(rows), limit=actions.distribution.threshold, **actions.how)
    left, right = np.nonzero(np.triu(actions.distribution.weights(d), k=1))
    return _Sample(rows, training.episodes()[rows], left, right)


def _geometry(training: Encoded, sample: _Sample, config: ProbeConfig, name: str, device: str) -> dict[str, Any]:
    z, episodes = training.latents[name], training.episodes()
    chosen = z[sample.rows]
    cross = sample.episodes[sample.left] != sample.episodes[sample.right]
    k = min(RANKED, len(z) - 1)
    itself = np.stack([sample.rows, sample.rows + 1], axis=1)
    neighbors = ExactSearch(z, device=device).search(chosen, k, itself)[0]
    share = other_episode_share(neighbors, episodes, sample.episodes)
    lengths = np.bincount(episodes)
    chance = (len(z) - lengths[sample.episodes]) / (len(z) - 1)
    rng = config.rng
    metrics: dict[str, Metric] = {
        f"other_episodes@{k}": episode_mean(share, sample.episodes, rng(_INTERVALS)),
        "other_episodes_chance": Metric(float(chance.mean())),
        "alignment": alignment(chosen, sample.left, sample.right, sample.episodes, rng(_INTERVALS)),
        "alignment_other_episodes": alignment(
            chosen, sample.left[cross], sample.right[cross], sample.episodes, rng(_INTERVALS)
        ),
        "alignment_chance": pair_mean(*_all_pairs(chosen, sample.episodes), rng(_INTERVALS)),
        "uniformity": uniformity(chosen, sample.episodes, rng(_INTERVALS)),
        "effective_rank": effective_rank_estimate(z, episodes),
    }
    return {key: estimate.to_json() for key, estimate in metrics.items()}


def _all_pairs(z: FloatArray, episodes: IntArray) -> tuple[Any, IntArray, IntArray]:
    left, right = np.triu_indices(len(z), k=1)
    return all_squared_distances(z), episodes[left], episodes[right]
