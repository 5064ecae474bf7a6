"""Similarity analysis of a data set: threshold, positives, how both depend on settings, examples.

Everything is written to one folder::

    similarity.json        settings, distribution, positives per anchor and per batch, sensitivity, examples
    examples.safetensors   windows (A, 4, T, D), normalised actions of the examples; frames (A, 4, S, S, 3) if there are
    positives.safetensors  positives, same_episode (M,) of every anchor, or of sampled ones, and which: anchors (M,);
                           by_quantile (K, S): positives of sampled anchors at several K
    distribution/          threshold and weights, for training
    work/                  state of an unfinished analysis, from which it is resumed
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classact.data.images import resize_images
from classact.data.normalize import constant_dimensions
from classact.data.types import Demonstrations, ImageArray, IntArray, StateArray
from classact.errors import CheckpointError, ConfigError, SimulatorError, UnknownNameError, choose
from classact.similarity import diagnostics
from classact.similarity.apart import Apart, early_rows, objects_apart, unseen_warnings
from classact.similarity.config import SimilarityAnalysisConfig, SimilarityConfig
from classact.similarity.counts import DistanceCounts
from classact.similarity.diagnostics import Setting
from classact.similarity.distribution import DistanceDistribution, read_distribution, write_distribution
from classact.similarity.examples import Example, choose_examples
from classact.similarity.job import count_pairs
from classact.similarity.model import fit_distribution, naming, similarity_identity, window_stream
from classact.similarity.pairwise import sample_pairs, stream_pairs
from classact.similarity.positives import Positives, count_positives
from classact.similarity.stream import Sweep
from classact.similarity.sweep import make_sweep
from classact.sims import SIMULATORS, SimulatorSpec, make_simulator, simulator_spec
from classact.utils.codec import first_difference, from_json
from classact.utils.locks import own
from classact.utils.progress import Callback, progress_bar
from classact.utils.ranks import Ranks
from classact.utils.storage import check_writable, read_arrays, read_json, write_arrays, write_json

NUMBERS, EXAMPLES, POSITIVES = "similarity.json", "examples.safetensors", "positives.safetensors"
DISTRIBUTION, WORK = "distribution", "work"

logger = logging.getLogger(__name__)

BATCH_SIZES = (32, 64, 160, 256, 512, 1024, 2048, 4096)
PICTURE = 160
_ROW_PAIRS = 1 << 26  # pairs with sampled anchors, in all
_LEAST_ANCHORS, _MOST_ANCHORS = 256, 1024
_SAMPLE = 400_000  # pairs that settings are compared on
_SAMPLE_APART = 100_000  # pairs that thresholds of other horizons are taken from

MANY_NONE = 0.05
MANY_NONE_IN_BATCH = 0.5
MANY_SAME_EPISODE = 0.5
TIES = 1.1
MOST = 0.3

Row = dict[str, Any]


def analyze_similarity(
    data: Demonstrations,
    config: SimilarityAnalysisConfig,
    folder: Path,
    *,
    ranks: Ranks | None = None,
    quiet: bool = False,
) -> Row:
    """Measure and write everything that the folder does not hold yet; several ranks share ``folder`` and the work.

    Returns:
        The content of similarity.json, on every rank.

    Raises:
        ConfigError: the folder belongs to other data or settings, or K selects nothing.
        DataError: actions that cannot be compared, or a damaged file.
        StorageError: disk full.
        TrainingInterrupted: Ctrl-C or SIGTERM; the folder can be resumed.
    """
    return _Analysis(data, config, Path(folder), ranks or Ranks(), quiet).run()


class _Analysis:
    def __init__(
        self, data: Demonstrations, config: SimilarityAnalysisConfig, folder: Path, ranks: Ranks, quiet: bool
    ) -> None:
        self.data, self.config, self.folder, self.ranks = data, config, folder, ranks
        self.quiet = quiet or not ranks.first
        self.setting = current_setting(config.similarity)
        data.require_actions()
        with naming(data):
            self.stream = window_stream(data, config.similarity)
        self.identity = similarity_identity(self.stream, config.similarity)
        self.episode = data.episode_index()
        self.seconds: dict[str, float] = {}
        self.columns = compared_columns(data, config.columns)

    @cached_property
    def sweep(self) -> Sweep:
        if self.ranks.world > 1 and self.config.device != "cpu":
            import torch

            if torch.cuda.is_available():
                torch.cuda.set_device(self.ranks.local_rank % torch.cuda.device_count())
        return make_sweep(self.stream, cost=self.setting.cost, band=self.setting.band, device=self.config.device)

    def run(self) -> Row:
        self.ranks.on_first(self.take)
        if not self.ranks.on_first(self.finished):
            self.measure()
        return self.ranks.on_first(self.complete)

    def take(self) -> None:
        """Lock the folder: two processes would remove each other's unfinished work."""
        check_writable(self.folder, folder=True)
        self.hold = own(self.folder)

    def finished(self) -> bool:
        if not (self.folder / NUMBERS).exists():
            return False
        row: Row = read_json(self.folder / NUMBERS)
        identity = row.get("identity", {})
        difference = first_difference(identity.get("settings"), self.identity["settings"], "settings")
        if not difference and identity.get("windows") != self.identity["windows"]:
            difference = f"other data, {row['data']['name']} of {row['data']['steps']:,} steps"
        if difference:
            raise ConfigError(f"{self.folder} was made with {difference}. Choose another --out, or remove that folder.")
        try:
            read_distribution(self.folder / DISTRIBUTION, self.identity)
            for name in (POSITIVES, EXAMPLES):
                read_arrays(self.folder / name, CheckpointError)
        except CheckpointError as error:
            logger.warning("%s It is measured again.", error)
            (self.folder / NUMBERS).unlink()
            return False
        return True

    @contextmanager
    def stage(self, name: str) -> Iterator[Callback]:
        begin = time.perf_counter()
        with progress_bar(name, quiet=self.quiet) as bar:
            yield bar
        self.seconds[name] = round(time.perf_counter() - begin, 3)

    def measure(self) -> None:
        distribution = self.distribution()
        positives = None
        anchors = self.sampled_anchors()
        if distribution.exact:
            anchors = np.arange(len(self.episode))
            limit, work = distribution.threshold, self.folder / WORK / "positives"
            with self.stage("count positives") as bar:
                positives = count_positives(self.sweep, limit, self.episode, work, self.identity, self.ranks, bar)
        self.ranks.on_first(lambda: self.write(distribution, anchors, positives))

    def distribution(self) -> DistanceDistribution:
        folder, config = self.folder / DISTRIBUTION, self.config.similarity
        self.ranks.on_first(self.remove_leftovers)
        if self.ranks.on_first(folder.is_dir):
            return read_distribution(folder, self.identity)
        attempts = count(1)

        def counted(limit: float) -> DistanceCounts:
            # Each limit has its own folder: one that proved too low is tried again with a higher one.
            work = self.folder / WORK / f"counts-{next(attempts)}"
            return count_pairs(work, self.sweep, len(self.stream), limit, self.identity, self.ranks, bar)

        with self.stage("measure distances") as bar:
            found = fit_distribution(self.stream, self.sweep, config, counted)
        self.ranks.on_first(lambda: write_distribution(folder, found, self.identity))
        return found

    def remove_leftovers(self) -> None:
        """Files of launches that were killed while writing, and a damaged distribution."""
        for leftover in self.folder.glob(f".{DISTRIBUTION}.*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        if (self.folder / DISTRIBUTION).is_dir():
            try:
                read_distribution(self.folder / DISTRIBUTION, self.identity)
            except CheckpointError as error:
                logger.warning("%s It is measured again.", error)
                shutil.rmtree(self.folder / DISTRIBUTION)

    def sampled_anchors(self) -> IntArray:
        n = len(self.episode)
        count = min(n, max(_LEAST_ANCHORS, min(_MOST_ANCHORS, _ROW_PAIRS // n)))
        return np.sort(np.random.default_rng([self.config.similarity.seed, 1]).permutation(n)[:count])

    def write(self, distribution: DistanceDistribution, anchors: IntArray, positives: Positives | None) -> None:
        """On rank 0: the statistics, the examples, and all files."""
        config, setting, n = self.config.similarity, self.setting, len(self.episode)
        with self.stage("compare settings") as bar:
            sensitivity, by_quantile = self.sensitivity(distribution, bar)
        at = [row["quantile"] for row in sensitivity["quantile"]["rows"]].index(config.quantile)
        positives = positives or by_quantile[at]
        with self.stage("draw examples"):
            compared: dict[str, Any] = {"cost": setting.cost, "band": setting.band, "seed": config.seed}
            examples = choose_examples(self.stream, self.episode, distribution.threshold, **compared)
            arrays = self.example_arrays(examples)
        row = {
            "data": {
                "name": self.data.name,
                "source": self.data.source,
                "episodes": len(self.data),
                "steps": n,
                "action_dim": self.data.actions.shape[1],
                "fingerprint": self.data.fingerprint(),
            },
            "settings": self.identity["settings"],
            "identity": self.identity,
            "device": self.sweep.device,
            "ranks": self.ranks.world,
            "all_pairs": n * (n - 1) // 2,
            **distribution.to_json(),
            "anchors": len(anchors),
            "positives": asdict(diagnostics.positives_per_anchor(positives)),
            "same_episode_chance": diagnostics.same_episode_share(self.data.episode_ends),
            "sensitivity": sensitivity,
            "examples": [self.example_json(example) for example in examples],
            "notes": notes(self.data),
            "apart": self.apart(),
            "seconds": self.seconds,
        }
        counted: Mapping[str, NDArray[Any]] = {
            "anchors": anchors,
            "positives": positives.total,
            "same_episode": positives.same_episode,
            "by_quantile": np.stack([found.total for found in by_quantile]),
        }
        write_arrays(self.folder / POSITIVES, counted)
        write_arrays(self.folder / EXAMPLES, arrays)
        write_json(self.folder / NUMBERS, self.with_batches(row, counted))  # last: it marks the folder as complete
        shutil.rmtree(self.folder / WORK, ignore_errors=True)

    def with_batches(self, row: Row, counted: Mapping[str, NDArray[Any]]) -> Row:
        """Add what depends on the batch size, and the warnings."""
        n = int(row["data"]["steps"])
        sizes = sorted({*(size for size in BATCH_SIZES if size <= n), min(self.config.batch_size, n)})
        batches = [asdict(diagnostics.positives_per_batch(counted["positives"], size, n)) for size in sizes]
        current = batches[sizes.index(min(self.config.batch_size, n))]
        for line, positives in zip(row["sensitivity"]["quantile"]["rows"], counted["by_quantile"], strict=True):
            line["batch"] = asdict(diagnostics.positives_per_batch(positives, self.config.batch_size, n))
        row = row | {"batches": batches, "batch": current}
        return row | {"warnings": row["notes"] + warnings(row)}

    def complete(self) -> Row:
        """The numbers, for the configured batch size, columns and early timesteps."""
        row: Row = read_json(self.folder / NUMBERS)
        before = row
        if (row.get("apart") or {}).get("asked") != self.asked:
            row = row | {"apart": self.apart()}
            row["warnings"] = row["notes"] + warnings(row)
        if row["batch"]["batch_size"] != min(self.config.batch_size, row["data"]["steps"]):
            row = self.with_batches(row, read_arrays(self.folder / POSITIVES))
        if row is not before:
            write_json(self.folder / NUMBERS, row)
        return row

    @property
    def asked(self) -> Row:
        """What :meth:`apart` depends on, beside what all numbers depend on."""
        return {"columns": list(self.columns), "early": self.config.early}

    def apart(self) -> Row:
        """How far apart things are in positives among early timesteps, for the present horizon and for others."""
        config, fps = self.config.similarity, self.data.schema.fps
        if fps is None and (spec := states_spec(self.data)) is not None:
            fps = spec.control_hz
        made: Row = {"asked": self.asked, "early": self.config.early, "fps": fps, "rows": [], "horizons": []}
        if not self.columns or len(self.data) < 2:
            return made
        rows = early_rows(self.data.episode_ends, self.config.early, seed=config.seed)
        present = read_distribution(self.folder / DISTRIBUTION, self.identity)
        made["timesteps"] = len(rows)
        others = [t for t in apart_horizons(int(np.median(self.data.lengths))) if t != config.horizon]
        with progress_bar("compare objects", quiet=self.quiet) as bar:
            for number, horizon in enumerate([config.horizon, *others]):
                bar(number, 1 + len(others), f"horizon {horizon}")
                own = replace(config, horizon=horizon, stride=min(config.stride, horizon))
                stream = self.stream if horizon == config.horizon else window_stream(self.data, own)
                compared: dict[str, Any] = {"cost": config.cost, "band": config.alignment_band}
                if horizon == config.horizon:
                    distribution = present
                else:
                    pairs = sample_pairs(len(stream), _SAMPLE_APART, config.seed)
                    distribution = DistanceDistribution.fit(stream_pairs(stream, *pairs, **compared), config.quantile)
                found = objects_apart(stream, self.episode, self.columns, distribution, rows, **compared)
                made["horizons"].append({"horizon": horizon, "rows": [asdict(one) for one in found]})
        made["rows"] = made["horizons"][0]["rows"]
        made["horizons"].sort(key=lambda one: int(one["horizon"]))
        return made

    def sensitivity(self, distribution: DistanceDistribution, bar: Callback) -> tuple[Row, list[Positives]]:
        """Tables of K, horizon and metric; and the positives of sampled anchors at each K of the first."""
        config, setting, n = self.config.similarity, self.setting, len(self.episode)
        actions = self.stream.points[self.stream.starts]
        left, right = sample_pairs(n, min(_SAMPLE, 20 * n * (n - 1)), config.seed)
        same = self.episode[left] == self.episode[right]
        longest = int(self.data.lengths.max())
        known = [t * setting.stride for t in diagnostics.HORIZONS if t * setting.stride <= longest]
        horizons, metrics = diagnostics.horizon_settings(setting, known), diagnostics.metric_settings(setting)
        # The work grows with the square of the horizon.
        total, done = 2 * sum(s.horizon**2 for s in (*horizons, *metrics)), 0

        def distances(s: Setting) -> NDArray[np.float32]:
            nonlocal done
            if s == setting:
                return reference
            found = diagnostics.setting_distances(actions, self.data.episode_ends, s, left, right)
            done += s.horizon**2
            bar(done, total, s.name)
            return found

        reference = diagnostics.setting_distances(actions, self.data.episode_ends, setting, left, right)
        tables: Row = {}
        for name, settings in (("horizon", horizons), ("metric", metrics)):
            rows = diagnostics.agreement(settings, setting, distances, config.quantile, same)
            tables[name] = {"pairs": len(left), "rows": [asdict(row) for row in rows]}
        quantiles = sorted({*diagnostics.QUANTILES, config.quantile})
        thresholds = [
            distribution.threshold if k == config.quantile else diagnostics.quantile_threshold(reference, k)
            for k in quantiles
        ]
        anchors = self.sampled_anchors()
        positives = diagnostics.anchor_positives(
            self.stream,
            self.episode,
            thresholds,
            anchors,
            cost=setting.cost,
            band=setting.band,
            progress=lambda a, m: bar(total // 2 + total * a // (2 * m), total, "K"),
        )
        lines = zip(quantiles, thresholds, positives, strict=True)
        tables["quantile"] = {
            "pairs": len(left),
            "anchors": len(anchors),
            "rows": [asdict(diagnostics.quantile_row(k, threshold, found)) for k, threshold, found in lines],
        }
        return tables, positives

    def timestep(self, row: int) -> Row:
        episode = int(self.episode[row])
        return {"row": row, "episode": episode, "step": row - self.data.bounds(episode)[0]}

    def example_json(self, example: Example) -> Row:
        pairs = [
            {"kind": pair.kind, **self.timestep(pair.row), "distance": pair.distance, "path": pair.path}
            for pair in example.pairs
        ]
        return self.timestep(example.row) | {"pairs": pairs}

    def example_arrays(self, examples: list[Example]) -> dict[str, NDArray[Any]]:
        rows = np.array([[example.row, *(pair.row for pair in example.pairs)] for example in examples])
        windows = self.stream.windows(rows.ravel())
        arrays: dict[str, NDArray[Any]] = {"windows": windows.reshape(*rows.shape, *windows.shape[1:])}
        frames = timestep_frames(self.data, rows.ravel())
        if frames is not None:
            arrays["frames"] = frames.reshape(*rows.shape, *frames.shape[1:])
        return arrays


def current_setting(config: SimilarityConfig) -> Setting:
    """The setting of a configuration, with its name in tables."""
    if config.metric == "l2":
        return Setting("L2, no warping", config.horizon, "sqeuclidean", 0, config.stride)
    steps = {"sqeuclidean": "squared Euclidean", "euclidean": "Euclidean"}[config.cost]
    band = "" if config.band is None else f", band {config.band}"
    return Setting(f"DTW, {steps} steps{band}", config.horizon, config.cost, config.alignment_band, config.stride)


_RANGE = re.compile(r"states\[(\d+):(\d+)\]")


def compared_columns(data: Demonstrations, names: Sequence[str] = ()) -> dict[str, StateArray]:
    """What is compared between timesteps: name -> (N, d) values.

    Args:
        data: demonstrations.
        names: as of :class:`SimilarityAnalysisConfig`; none: the positions of all objects of their simulator, if they
            hold its states.

    Raises:
        ConfigError: an unknown name, or columns of states that data do not have.
    """
    spec, states = states_spec(data), data.states
    objects: dict[str, StateArray] = {}
    if spec is not None and states is not None:
        objects = {name: states[:, first : first + 3] for name, first in spec.objects}
    if not names:
        return objects
    found = {}
    where = f"{data.name} ({data.source})"
    for name in names:
        if name in objects:
            found[name] = objects[name]
        elif name in data.schema.keys:
            found[name] = data.proprioception[:, data.schema.columns([name])].astype(np.float64)
        elif (match := _RANGE.fullmatch(name)) is not None:
            first, last = map(int, match.groups())
            have = 0 if states is None else states.shape[1]
            if not first < last <= have:
                raise ConfigError(
                    f"columns {name}: {where} has states of {have} columns, and 0 <= first < last <= {have}."
                )
            assert states is not None
            found[name] = states[:, first:last]
        else:
            known = [*objects, *data.schema.keys, *(() if states is None else (f"states[0:{states.shape[1]}]",))]
            raise UnknownNameError(f"{where}: {choose('columns', name, known)}")
    return found


def states_spec(data: Demonstrations) -> SimulatorSpec | None:
    """Facts about the simulator whose states demonstrations hold; None where there are none, or it is not known."""
    if data.states is None or data.simulator not in SIMULATORS:
        return None
    try:
        spec = simulator_spec(data.simulator)
    except (ConfigError, SimulatorError):  # one that has to be started, and is not installed
        return None
    return spec if data.states.shape[1] == spec.state_dim else None


def apart_horizons(length: int) -> list[int]:
    """Horizons that objects are compared at: powers of two up to a third of a demonstration of ``length``."""
    return [t for t in (8, 16, 32, 64, 128) if t <= max(8, length // 3)]


def timestep_frames(data: Demonstrations, rows: IntArray) -> ImageArray | None:
    """(K, S, S, 3) frames of the steps ``rows`` (K,): recorded ones, else drawn from states.

    None where there are neither, or the states' simulator is unknown or not installed.
    """
    if data.images:
        images = data.images[next(iter(data.images))]
        return resize_images(np.stack([np.asarray(images[row]) for row in rows]), PICTURE)
    if data.states is None:
        return None
    try:
        simulator = make_simulator(data.simulator or "pusht")
    except (ConfigError, SimulatorError) as problem:
        logger.warning("examples are shown without pictures: %s", problem)
        return None
    try:
        if data.states.shape[1] != simulator.spec.state_dim:
            return None
        pictures = []
        for row in rows:
            simulator.set_state(data.states[row])
            pictures.append(next(iter(simulator.observe().images.values())))
        return resize_images(np.stack(pictures), PICTURE)
    finally:
        simulator.close()


def notes(data: Demonstrations) -> list[str]:
    """What is odd about the data, whatever K is."""
    space = data.schema.actions
    constant = np.flatnonzero(constant_dimensions(data.actions, 0.0 if space is None else space.magnitude()))
    which = ", ".join(str(int(d)) for d in constant)
    return [f"Constant action dimensions ({which}) add nothing to any distance."] if which else []


def warnings(row: Mapping[str, Any]) -> list[str]:
    """What is likely to go wrong with these numbers, and what would help."""
    found = []
    positives, batch, settings = row["positives"], row["batch"], row["settings"]
    share = row["kept"] / row["pairs"]
    if share > TIES * settings["quantile"] and row["kept"] > settings["quantile"] * row["pairs"] + 1:
        found.append(
            f"K = {100 * settings['quantile']:g} % keeps {100 * share:.3g} % of all pairs, because many distances "
            f"equal the threshold: the actions hardly vary there."
        )
    if (apart := row.get("apart")) is not None:
        rows = [from_json(Apart, one, "apart") for one in apart["rows"]]
        steps, fps = settings["horizon"], apart["fps"]
        window = f"{steps} steps" if fps is None else f"{steps} steps = {steps / fps:.3g} s"
        found += unseen_warnings(rows, apart["early"], window)
    if share > MOST:
        found.append(
            f"K = {100 * settings['quantile']:g} % calls {100 * share:.3g} % of all pairs positive: little is left to "
            f"contrast with. The paper uses 1 to 2.5 %."
        )
    if positives["none"] > MANY_NONE:
        found.append(
            f"{100 * positives['none']:.1f} % of the anchors have no positive in the whole data set, so nothing is "
            f"learned about them. A larger K or a shorter horizon gives more of them one."
        )
    if batch["none"] > MANY_NONE_IN_BATCH:
        found.append(
            f"In a batch of {batch['batch_size']:,}, {100 * batch['none']:.1f} % of the anchors find no positive "
            f"({batch['positives']:.2g} expected each). Larger batches or a larger K would use more of every batch."
        )
    if positives["same_episode"] > MANY_SAME_EPISODE:
        found.append(
            f"{100 * positives['same_episode']:.1f} % of the positive pairs lie within one episode, mostly neighbours "
            f"in time: they teach little about what episodes have in common. A larger K, or training with pairs "
            f"'cross-episode', weighs them less."
        )
    return found
