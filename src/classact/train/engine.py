"""The training loop that all objectives share: one process or many, interrupted and resumed at any step.

A training computes a batch's gradients (:meth:`Training.gradients`); everything else is here: batches cut among ranks,
gradients summed over them, clipping, schedule, weight averages, checkpoints, logs, and error handling.

Three rules give the same result on any number of processes:

* a batch is global: its steps depend on (seed, step) alone, and each rank computes a contiguous part;
* random numbers are drawn for the whole batch from a generator seeded by (seed, step), then cut (:class:`Part`);
* gradients are those of the loss over the whole batch. A contrastive loss needs all features: each rank computes the
  full loss on the gathered features as a leaf, and takes back the gradient of its own part. So micro-batches
  (``accumulate``) give the gradient of the large batch, not that of several small ones.

Results for different numbers of ranks or micro-batches differ only by the rounding of sums, as long as the ranks'
devices are alike: the numbers that a GPU draws from a seed depend on its kind, and differ from a CPU's. Checkpoints do
not depend on ranks: a training may be resumed with another number of them.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from classact.data.images import Images, frames_digest
from classact.data.types import Demonstrations, IntArray
from classact.errors import CheckpointError, ClassactError, ConfigError, TrainingInterrupted
from classact.models.average import ema_decay, update_ema
from classact.models.weights import load_weights
from classact.train.checkpoints import (
    META,
    TrainingState,
    list_checkpoints,
    load_latest,
    load_optimizer_tensors,
    optimizer_tensors,
    save_checkpoint,
)
from classact.train.config import EngineConfig, OptimizerConfig
from classact.train.loader import ImageLoader, ResidentLoader, describe_bytes, free_memory, make_loader
from classact.train.optim import learning_rate
from classact.train.trackers import Trackers, require
from classact.utils.codec import first_difference, to_json, without
from classact.utils.interruptions import interruptible
from classact.utils.locks import Hold, own
from classact.utils.ranks import Ranks
from classact.utils.storage import read_json, write_json

DIVERGED = "diverged.json"
PRECISION_FLAGS = {"precision": "bfloat16", "head_precision": "head_bfloat16"}
"""Settings that may be "auto" -> where a checkpoint's identity says what they became on the first machine."""

AGREE_EVERY = 8
"""Steps on GPUs after which ranks exchange whether one was asked to stop. On CPUs, with longer steps, they do after
each: ``torchrun`` kills 30 s after its signal."""

EXHAUSTED = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""In messages of errors where memory ran out, besides those with their own class."""

Batch = Mapping[str, Tensor]  # camera -> (B, S, S, 3) uint8 of this rank's part of a batch
Stats = dict[str, Tensor]  # scalars of a step, still on the device: fetching them makes the host wait


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether the backbone runs in bfloat16 on this machine."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Without hardware support bfloat16 is emulated and slower than float32.
    return "avx512_bf16" in _cpu_flags() or "amx_bf16" in _cpu_flags()


def spelled_out(settings: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a training with "auto" replaced by the precision that it became on the machine where it began.

    ``flags`` says which of :data:`PRECISION_FLAGS` are bfloat16; others stay "auto".
    """
    came_to = {
        name: "bfloat16" if flags[flag] else "float32" for name, flag in PRECISION_FLAGS.items() if flag in flags
    }
    return {**settings, **{name: value for name, value in came_to.items() if settings.get(name) == "auto"}}


def precision_flags(checkpoints: Path) -> dict[str, bool]:
    """The ``flags`` of :func:`spelled_out` from the newest checkpoint in a folder; empty where there is none."""
    for _, path in reversed(list_checkpoints(checkpoints)):
        with suppress(CheckpointError):
            identity = read_json(path / META, CheckpointError)["identity"]
            return {flag: identity[flag] for flag in PRECISION_FLAGS.values() if flag in identity}
    return {}


def _cpu_flags() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def in_order(rows: IntArray) -> IntArray:
    """Rows of a batch by their first step: neighbours in the file are read together; no loss depends on the order."""
    return np.sort(rows) if rows.ndim == 1 else rows[np.argsort(rows[:, 0], kind="stable")]


def step_generator(seed: int, step: int | tuple[int, ...], device: torch.device) -> torch.Generator:
    """The generator of one step's augmentations and noise, or of what else several numbers tell apart."""
    words = step if isinstance(step, tuple) else (step,)
    entropy = np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(entropy >> np.uint64(1)))


def check_engine(engine: EngineConfig, ranks: Ranks, batch_size: int, examples: int) -> None:
    """Refuse impossible settings, with ``batch_size`` of all ranks together and N ``examples``.

    Raises:
        ConfigError: fewer rows in a batch than ranks times micro-batches.
        MissingDependencyError: a tracker's package is not installed.
    """
    require(engine.trackers)
    size = min(batch_size, examples)
    if size // ranks.world < engine.accumulate:
        raise ConfigError(
            f"a batch of {size} cannot be cut into {ranks.world} ranks x {engine.accumulate} micro-batches. Raise "
            f"batch_size, or lower accumulate or the number of ranks."
        )


@dataclass(eq=False)
class Training(ABC):
    """A training that can be interrupted anywhere and shared by processes. Subclasses are dataclasses that call
    :func:`check_engine` before anything that takes long, and :meth:`start` once their networks are made.

    Args:
        demonstrations: actions, and images (N, S, S, 3) of the encoder's cameras and image size.
        config: settings.
        folder: for checkpoints, train.jsonl and trackers' files; None keeps nothing.
        device: "cpu" or "cuda".
        engine: how it is computed.
        ranks: this process among those that share the training.
        say: told where the images are kept, and what takes long.

    Attributes:
        networks: what is trained or kept, by name; frozen parameters are neither changed nor averaged.
        averages: those of them that act later, with averaged (EMA) weights.
        step, steps: updates done and in all.
        seconds: training time, over all interruptions.
    """

    demonstrations: Demonstrations
    config: Any
    folder: Path | None = None
    device: str = "cpu"
    engine: EngineConfig = field(default_factory=EngineConfig)
    ranks: Ranks = field(default_factory=Ranks)
    say: Callable[[str], None] | None = None

    def start(
        self,
        *,
        networks: Mapping[str, nn.Module],
        averages: Mapping[str, nn.Module],
        optimizer: torch.optim.Optimizer,
        schedule: OptimizerConfig,
        images: Mapping[str, Images],
        loads: bool = True,
    ) -> None:
        """Set up the loop.

        Args:
            networks, averages: see :class:`Training`.
            optimizer: its groups may hold their "peak" rate, else that of ``schedule``.
            schedule: warm-up, peak rate, clipping, averaging.
            images: camera -> (N, S, S, 3) uint8 that batches are taken from; a ConfigError where they exceed the
                memory.
            loads: whether steps need them.
        """
        self.networks, self.averages = dict(networks), dict(averages)
        self.optimizer, self.schedule, self.images = optimizer, schedule, dict(images)
        self.examples = self.demonstrations.num_steps
        self.batch_size = min(self.config.batch_size, self.examples)
        self.step, self.steps, self.seconds = 0, self.config.steps(self.examples), 0.0
        self.status: Callable[[str], None] = lambda _: None  # shown where progress is, before the first step
        self._hold: Hold | None = None
        self.loader: ImageLoader | None = None
        if loads:
            said = self.say if self.ranks.first else None
            self.loader = make_loader(self.images, self.device, self.engine.loader, said)
        self.lag = 1 if torch.device(self.device).type == "cuda" else 0
        self._pending: list[tuple[int, float, IntArray, Stats]] = []

    @abstractmethod
    def batches(self, first_step: int) -> Iterator[IntArray]:
        """(B,) or (B, M) steps of the data for each update from ``first_step`` on, the same on every rank: B rows, each
        of an anchor and M - 1 context frames.
        """

    @abstractmethod
    def gradients(self, rows: IntArray, part: slice, images: Batch, generator: torch.Generator) -> Stats:
        """Add this rank's share of the gradient of the loss over the whole batch to the networks' parameters.

        Args:
            rows: (B,) or (B, M) all rows of the batch, sorted by their first step.
            part: this rank's rows.
            images: of :meth:`timesteps` of ``rows[part]``; empty where the loader is not used.
            generator: seeded by (seed, step); draw for the whole batch, in the same order on every rank.

        Returns scalars to log, "loss" among them: the same on every rank.
        """

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be resumed."""
        weights = self.demonstrations.weights()
        return {
            "data": self.demonstrations.fingerprint(),
            **({} if weights is None else {"weights": hashlib.sha256(weights.tobytes()).hexdigest()}),
            "schema": to_json(self.demonstrations.schema),
            "images": self._images_digest,
        }

    @cached_property
    def _images_digest(self) -> str | dict[str, str]:
        """SHA-256 of the images by camera; a single camera's alone."""
        digests = {camera: frames_digest(array) for camera, array in self.images.items()}
        return next(iter(digests.values())) if len(digests) == 1 else digests

    @abstractmethod
    def settle(self, flags: Mapping[str, Any]) -> None:
        """Resolve "auto" as rank 0, or the machine where this training began, did: ``flags`` is its identity with the
        :data:`PRECISION_FLAGS`.
        """

    def sizes(self) -> str:
        """What else takes memory beside batch and images, as part of a list for messages."""
        return ""

    def timesteps(self, rows: IntArray) -> IntArray:
        """The images that a step needs for ``rows``: by default of these steps, row by row."""
        return rows.reshape(-1)

    def images_per_row(self) -> int:
        """Images of all cameras per row of a batch, for the logged speed."""
        return 1

    def clip(self) -> Tensor:
        """Limit the gradient's norm; returns what it was."""
        return nn.utils.clip_grad_norm_(self.trained, self.schedule.clip_norm)

    def after_step(self) -> None:  # noqa: B027 (nothing, unless a subclass has something to do)
        """Called after each update, for networks that follow the trained ones."""

    def prepare(self) -> None:  # noqa: B027 (nothing, unless a subclass has something to do)
        """What all ranks do together once, before the first step of :meth:`run`."""

    # -- one step ---------------------------------------------------------------------------------------------------

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that are updated."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def train_step(self, rows: IntArray) -> dict[str, float]:
        """One update on ``rows`` (B,) or (B, M), steps of the data; returns what :meth:`run` would log.

        Call :meth:`prepare` before the first.
        """
        rows = in_order(rows)
        images = {} if self.loader is None else self.loader.take(self.timesteps(rows[self.ranks.part(len(rows))]))
        self._launch(rows, images)
        return self._settle(0)

    def _launch(self, rows: IntArray, images: Batch) -> None:
        device = torch.device(self.device)
        rate = learning_rate(self.schedule, self.step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("peak", 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        part = self.ranks.part(len(rows))
        stats = self.gradients(rows, part, images, step_generator(self.config.seed, self.step, device))
        trained = self.trained
        if self.ranks.world > 1:
            self.ranks.sum_([p.grad for p in trained if p.grad is not None])
        norm = self.clip()
        self.optimizer.step()
        self.step += 1
        decay = ema_decay(self.step, self.schedule.ema_power)
        for name, averaged in self.averages.items():
            update_ema(averaged, self.networks[name], decay)
        self.after_step()
        self._pending.append((self.step, rate, rows, stats | {"grad_norm": norm}))

    def _settle(self, left: int) -> dict[str, float]:
        """Fetch and check the figures of all but the last ``left`` steps; returns the newest of them."""
        logged: dict[str, float] = {}
        while len(self._pending) > left:
            step, rate, rows, stats = self._pending.pop(0)
            # One transfer for all: each synchronises with the device.
            values = torch.stack([value.detach().double().reshape(()) for value in stats.values()]).tolist()
            logged = dict(zip(stats, values, strict=True))
            if not np.isfinite([logged["loss"], logged["grad_norm"]]).all():
                self._diverged(step, rows, logged)
            logged = {"loss": logged.pop("loss"), **self.rates(rate), **logged}
        return logged

    def rates(self, rate: float) -> dict[str, float]:
        """Learning rates as they are logged, from the schedule's."""
        return {"lr": rate}

    def _diverged(self, step: int, rows: IntArray, stats: Mapping[str, float]) -> NoReturn:
        where = ""
        if self.folder is not None:
            if self.ranks.first:
                figures = {name: repr(value) for name, value in stats.items()}  # JSON knows no NaN
                write_json(self.folder / DIVERGED, {"step": step, **figures, "rows": rows})
            where = f" The steps of its batch are in {self.folder / DIVERGED}."
        peaks = {group.get("peak", self.schedule.learning_rate) for group in self.optimizer.param_groups}
        rates = ", ".join(f"{peak:g}" for peak in sorted(peaks))
        raise ClassactError(
            f"the loss became {stats['loss']} and its gradient's norm {stats['grad_norm']} at step {step} of "
            f"{self.steps}.{where} Lower the learning rate (now {rates}); the last checkpoint is from before that."
        )

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(
        self,
        progress: Callable[[int, int, str], None] | None = None,
        intermediate: Callable[[Any], None] | None = None,
    ) -> None:
        """Train to the end, from the newest intact checkpoint in ``folder`` if there is one.

        Args:
            progress: called on rank 0 with (steps done, in all, a short status) after each step, and while what steps
                need is prepared.
            intermediate: called on rank 0 with this training after each of ``config.intermediates``, to evaluate its
                averages, once the checkpoint of that step is written. A run resumed from such a step calls it again,
                with the same weights, because it may have been interrupted before or in it.

        Raises:
            TrainingInterrupted: Ctrl-C or SIGTERM; the state was saved.
            CheckpointError: the checkpoint belongs to other settings or data.
            BusyError: another process trains in ``folder``.
            ConfigError: the ranks have other settings or data than rank 0, or a tracker cannot start.
            ClassactError: the loss became NaN or infinite, memory ran out, or another rank was lost; the last
                checkpoint precedes it.
        """
        if progress is not None and self.ranks.first:
            self.status = lambda text: progress(self.step, self.steps, text)
        with self._connected():
            # First: a checkpoint that only one rank refuses would leave the others waiting.
            self._agree()
            self.ranks.on_first(self._own)
            self.resume()
        if self.step < self.steps:
            with self._kernels(), self._guard(f"before step {self.step + 1}"), self._connected():
                self.prepare()
        due = set() if intermediate is None else set(self.config.intermediates(self.steps))
        begin, spent = time.perf_counter(), self.seconds
        mark, window = self.step, begin
        trackers = self._trackers()
        try:
            with interruptible() as interrupted, self._kernels(), self._loaded_batches() as batches:
                while True:
                    if self.step in due:
                        paused = time.perf_counter()
                        assert intermediate is not None
                        with self._connected():
                            # Its errors reach all ranks, which would otherwise wait forever.
                            self.ranks.on_first(partial(self._evaluate, intermediate))
                        paused = time.perf_counter() - paused  # evaluation is no training time
                        begin, window = begin + paused, window + paused
                        with self._connected():
                            stopped = self._stopped(interrupted(), saves=True)
                        if stopped:  # the checkpoint of this step is written already
                            self._interrupt()
                    if self.step >= self.steps:
                        break
                    with self._guard(f"at step {self.step + 1}"), self._connected():
                        self._launch(*next(batches))
                        last = self.step == self.steps
                        logs = self.step % self.config.log_every == 0 or last
                        saves = self.step % self.config.checkpoint_every == 0 or last or self.step in due
                        # Only a log or a checkpoint needs all figures; otherwise the host need not synchronise.
                        stats = self._settle(0 if logs or saves else self.lag)
                    now = time.perf_counter()
                    self.seconds = spent + now - begin
                    if progress is not None and self.ranks.first:
                        progress(self.step, self.steps, f"loss {stats['loss']:.4f}" if stats else "")
                    if logs:
                        speed = (self.step - mark) * self.batch_size / max(now - window, 1e-9)
                        mark, window = self.step, now
                        row = {
                            "step": self.step,
                            "steps": self.steps,
                            "epoch": self.step * self.batch_size / self.examples,
                            **stats,
                            "images_per_second": speed * self.images_per_row(),
                            "seconds": self.seconds,
                        }
                        trackers.log(self.step, row)
                    with self._connected():
                        stopped = self._stopped(interrupted(), saves)
                        if stopped:
                            self._settle(0)
                    if stopped or saves:
                        self.save()
                    if stopped:
                        self._interrupt()
                self._together()
        finally:
            self._pending.clear()
            self._hold = None
            trackers.close()

    def _interrupt(self) -> NoReturn:
        self._together()
        what = f"saved in {self.folder}; training goes on from there" if self.folder else "lost: no folder"
        raise TrainingInterrupted(f"stopped at step {self.step} of {self.steps}; the state is {what}.")

    def _agree(self) -> None:
        """Refuse ranks with other settings or data than rank 0's."""
        if self.ranks.world == 1:
            return
        first = self.ranks.broadcast_object(to_json(self.identity()))
        self.settle(first)
        difference = first_difference(first, to_json(self.identity()), "")
        if self.ranks.any(difference is not None):
            who = f"rank {self.ranks.rank}" if difference else "another rank"
            what = f": {difference}" if difference else ", and says which"
            raise ConfigError(
                f"{who} was started with other data or settings than rank 0{what}. Start all {self.ranks.world} ranks "
                f"with the same command, on the same data."
            )

    def _own(self) -> None:
        if self.folder is not None:  # two trainings would delete each other's checkpoints
            self._hold = own(self.folder / "checkpoints")

    def _evaluate(self, intermediate: Callable[[Any], None]) -> None:
        with self._guard(f"in the evaluation after step {self.step}"):
            intermediate(self)

    def _trackers(self) -> Trackers:
        opened: list[Trackers] = []

        def start() -> None:
            settings = self.identity() if self.engine.trackers else {}
            opened.append(Trackers(self.engine.trackers, self.folder, settings, self.step))

        with self._connected():
            self.ranks.on_first(start)  # its errors reach all, as above
        return opened[0] if opened else Trackers()

    def _stopped(self, interrupted: bool, saves: bool) -> bool:
        if self.ranks.world == 1:
            return interrupted
        # All ranks stop after the same step, or one would wait for the others forever.
        asked = saves or not self.lag or self.step % AGREE_EVERY == 0
        return asked and self.ranks.any(interrupted)

    def _together(self) -> None:
        # A launcher that sees one rank end may kill the others, and rank 0 may be writing a checkpoint.
        with self._connected():
            self.ranks.barrier()

    @contextmanager
    def _loaded_batches(self) -> Iterator[Iterator[tuple[IntArray, Batch]]]:
        rows = (in_order(batch) for batch in self.batches(self.step))
        if self.loader is None:
            yield ((batch, {}) for batch in rows)
            return
        ahead: list[IntArray] = []

        def wanted() -> Iterator[IntArray]:
            for batch in rows:
                ahead.append(batch)
                yield self.timesteps(batch[self.ranks.part(len(batch))])

        with closing(self.loader.batches(wanted())) as loaded:
            yield ((ahead.pop(0), images) for _, images in loaded)

    @contextmanager
    def _kernels(self) -> Iterator[None]:
        if torch.device(self.device).type != "cuda":
            yield
            return
        benchmark, before = torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
        lenient = torch.is_deterministic_algorithms_warn_only_enabled()
        torch.backends.cudnn.benchmark = not (self.engine.deterministic or before)
        if self.engine.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = benchmark
            torch.use_deterministic_algorithms(before, warn_only=lenient)

    @contextmanager
    def _guard(self, where: str) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError))
            if not exhausted and not any(sign in str(error) for sign in EXHAUSTED):
                raise
            raise ClassactError(
                f"out of memory {where} of {self.steps}. {self._memory_advice()} The last checkpoint is from before "
                f"that."
            ) from error

    def _memory_advice(self) -> str:
        encoder: Any = self.networks["encoder"]
        advice = (
            f"Raise accumulate (--accumulate, now {self.engine.accumulate}; it changes no result), or lower batch_size "
            f"(--batch-size, now {self.config.batch_size}){self.sizes()} or the encoder's crop_size (now "
            f"{encoder.config.crop_size})."
        )
        if not isinstance(self.loader, ResidentLoader) or not (held := self.loader.device_bytes):
            return advice
        total = free_memory(torch.device(self.device))[1]
        return (
            f"{advice} The images take {describe_bytes(held)} of the {describe_bytes(total)} of the GPU's memory; the "
            f"loader 'prefetch' (--loader prefetch) leaves them where they are."
        )

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if self.ranks.world == 1 or not _lost_peer(str(error)):
                raise
            raise ClassactError(
                f"rank {self.ranks.rank} lost another of the {self.ranks.world} ranks near step {self.step} of "
                f"{self.steps} ({str(error).strip().splitlines()[0][:200]}). Run the same command again: training goes "
                f"on from the last checkpoint in {self.folder}, with any number of ranks."
            ) from error

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint of the present state, on rank 0."""
        if self.folder is None or not self.ranks.first:
            return
        tensors = optimizer_tensors(self.optimizer)
        for prefix, network in self._saved():
            tensors |= {f"{prefix}{key}": value for key, value in network.state_dict().items()}
        meta = {"identity": self.identity(), "seconds": self.seconds}
        save_checkpoint(self.folder / "checkpoints", TrainingState(self.step, tensors, meta))

    def changes(self, name: str) -> bool:
        """Whether a network is trained; a frozen one is no part of a checkpoint."""
        return any(p.requires_grad for p in self.networks[name].parameters())

    def _saved(self) -> Iterator[tuple[str, nn.Module]]:
        for kind, networks in (("model", self.networks), ("ema", self.averages)):
            yield from ((f"{kind}.{name}.", network) for name, network in networks.items() if self.changes(name))

    def resume(self) -> bool:
        """Load the newest intact checkpoint of ``folder``; False where there is none.

        A checkpoint of another training, or not the same one on all ranks, is a CheckpointError.
        """
        state = load_latest(self.folder / "checkpoints") if self.folder else None
        found = 0 if state is None else state.step
        if self.ranks.world > 1 and self.ranks.any(self.ranks.broadcast_object(found) != found):
            raise CheckpointError(
                f"the ranks see different checkpoints in {self.folder}: rank {self.ranks.rank} found step {found}. All "
                f"machines must share that folder."
            )
        if state is None:
            return False
        where = Path(f"{self.folder}/checkpoints/step-{state.step:08d}")
        began = state.meta["identity"]
        if missing := set(PRECISION_FLAGS.values()) & self.identity().keys() - began.keys():
            raise CheckpointError(
                f"{where} is of another kind of training: it does not say {', '.join(sorted(missing))}. Give another "
                f"--out."
            )
        self.settle(began)
        # By the settings' names, which users can change, rather than what they resolved to.
        named = {**began, "config": spelled_out(began["config"], began)}
        made, own = (without(to_json(value), *PRECISION_FLAGS.values()) for value in (named, self.identity()))
        if difference := first_difference(made, own, ""):
            raise CheckpointError(
                f"{where} was made with {difference}. Give another --out for the new settings, or remove that folder "
                f"to start over."
            )
        for prefix, network in self._saved():
            load_weights(network, state.part(prefix), where)
        load_optimizer_tensors(self.optimizer, state.tensors)
        for parameter, kept in self.optimizer.state.items():
            for name, value in kept.items():
                if value.shape == parameter.shape and value.stride() != parameter.stride():
                    # Read as rows, used channels-last: fused kernels walk through memory, not through indices.
                    kept[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
        self.step, self.seconds = state.step, float(state.meta["seconds"])
        return True


def _lost_peer(text: str) -> bool:
    signs = ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "gloo", "process group", "Socket")
    return any(sign in text for sign in signs)
