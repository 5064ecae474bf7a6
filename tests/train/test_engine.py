"""The training loop: one process and two end alike, wherever they were stopped, and say what went wrong."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine_ranks
from classact.cli.engine import training_ranks
from classact.data.types import Demonstrations
from classact.errors import CheckpointError, ClassactError, ConfigError, MissingDependencyError, TrainingInterrupted
from classact.objectives import SoftInfoNCEConfig
from classact.train import engine, trackers
from classact.train.checkpoints import STATE, list_checkpoints, load_checkpoint
from classact.train.config import AugmentConfig, EngineConfig
from classact.train.engine import DIVERGED, Training
from classact.train.loader import THREAD_NAME, ResidentLoader
from classact.train.representation import is_compiled, memory_format
from classact.utils.ranks import Ranks
from classact.utils.storage import read_jsonl, verify_folder
from engine_ranks import ENCODER, KINDS, Job, Outcome, demonstrations, hook, make, perform

WEIGHTS, FIGURES = 1e-3, 1e-4
"""What rounding may do. Weights: their difference by the way they went, both as 2-norms over all tensors; figures (loss
and norm of the gradient of each step): relative. float32 rounds by 6e-8; sums in another order, and Adam's division of
small gradients by their size, made 5e-5 and 3e-6 of that at most between numbers of ranks and micro-batches when this
was written, 1.3e-4 and 2e-5 between memory formats. The mistakes that are tried make 0.1 and more of the first, or of
the second."""

MISTAKE = 50
"""How many times the limits a mistake is beyond them."""

ODD = 33
"""Batch of which two ranks compute 17 and 16 rows, in micro-batches of 9, 8, 8 and 8."""


@pytest.fixture(scope="module", autouse=True)
def small_machine(quick: None) -> Iterator[None]:  # noqa: ARG001
    """As in the processes of :func:`together`, with smooth networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "relu", engine_ranks.smooth())
        yield


@pytest.fixture(scope="module")
def server() -> Any:
    """Starts processes that hold everything imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["engine_ranks", "accelerate", "torch._dynamo", "timm.optim.lars", "pytest"])
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            patch.setenv(variable, "1")
        forkserver.ensure_running()
    return context


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(server: Any, *jobs: Job) -> list[list[Outcome]]:
    """Two ranks do the jobs one after the other; for each job what each rank saw, as far as it lived to tell."""
    port, pipes, processes = free_port(), [], []
    for rank in range(2):
        here, there = server.Pipe(duplex=False)
        process = server.Process(target=engine_ranks.run, args=(there, rank, 2, port, jobs))
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    outcomes: list[list[Outcome]] = []
    try:
        for job in jobs:
            outcomes.append([])
            for pipe in pipes:
                assert pipe.poll(200), job
                try:
                    outcome = pipe.recv()
                except EOFError:  # killed
                    continue
                assert isinstance(outcome, Outcome), f"{job}: {outcome}"
                outcomes[-1].append(outcome)
        for process in processes:
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL)
    finally:
        for process in processes:
            process.kill()
    return outcomes


def alone(job: Job) -> Outcome:
    return perform(job, Ranks())


def checkpoint(folder: Path, step: int) -> Mapping[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"step-{step:08d}").tensors


def saved(folder: Path) -> list[int]:
    return [step for step, _ in list_checkpoints(folder / "checkpoints")]


def tensors(made: Training) -> dict[str, torch.Tensor]:
    """Weights and averages, by the names that they have in a checkpoint."""
    return {
        f"{kind}.{name}.{key}": value.clone()
        for kind, networks in (("model", made.networks), ("ema", made.averages))
        for name, network in networks.items()
        if made.changes(name)
        for key, value in network.state_dict().items()
    }


def difference(
    one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]
) -> float:
    """||one - two|| / ||one - start|| over weights and averages."""
    apart, way = 0.0, 0.0
    for name, value in start.items():
        apart += float((one[name].double() - two[name].double()).square().sum())
        way += float((one[name].double() - value.double()).square().sum())
    return (apart / way) ** 0.5


def figures(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """(steps,) of train.jsonl."""
    return np.array([row[name] for row in read_jsonl(folder / "train.jsonl")])


def worst(one: Path, two: Path) -> float:
    """Largest relative difference of a loss or norm."""
    return max(
        float(np.max(np.abs(figures(one, name) - figures(two, name)) / np.abs(figures(one, name))))
        for name in ("loss", "grad_norm")
    )


def apart(one: Path, two: Path, job: Job) -> tuple[float, float]:
    """How far two runs of a job are from each other: weights by :data:`WEIGHTS`, figures by :data:`FIGURES`."""
    start = tensors(make(job.kind, None, job.steps, **job.changes))
    weights = difference(checkpoint(one, job.steps), checkpoint(two, job.steps), start)
    return weights / WEIGHTS, worst(one, two) / FIGURES


def assert_alike(one: Path, two: Path, job: Job) -> None:
    found = apart(one, two, job)
    assert max(found) < 1, found


# -- two ranks -----------------------------------------------------------------------------------------------------

PLAIN = {
    "batch_size": 64,
    "augment": AugmentConfig(noise_std=0.0),
    "encoder": replace(ENCODER, crop_size=32),
    "objective": SoftInfoNCEConfig(),
}
"""Nothing is drawn: what remains is how the loss is made."""

HALVES, LARGE = EngineConfig(accumulate=2), {"batch_size": 160}
OWN = ("byol", "dynamo", "sum")
"""Objectives with networks of their own, a target network, a queue, or several images in a row."""

FAULTS = ("class-mean", "class-one", "mlp-mean", "mlp-parts", "diffusion-parts", "byol-one", "dynamo-twice")
LATE = {"log_every": 100, "checkpoint_every": 100}


def jobs(folder: Path) -> dict[str, Job]:
    """What the two ranks do, by the name of its folder; the order matters where a name has a dot."""

    def job(name: str, *args: Any, **options: Any) -> tuple[str, Job]:
        return name, Job(name.split("-")[0], str(folder / name.split(".")[0]), *args, **options)

    small = {"batch_size": 16}
    return dict(
        [
            *(job(f"{kind}-160", 3, LARGE) for kind in KINDS),
            *(job(f"{kind}-odd", 3, {"batch_size": ODD}) for kind in (*KINDS, *OWN)),
            *(job(f"{kind}-halves", 3, {"batch_size": ODD}, HALVES) for kind in (*KINDS, *OWN)),
            *(job(name, 3, {"batch_size": ODD}, fault=name.split("-")[1]) for name in FAULTS),
            *(job(f"{kind}-to2", 4, {"batch_size": ODD}) for kind in KINDS),
            *(job(f"{kind}-to1", 4, {"batch_size": ODD}, events=[(0, 2, "SIGINT")]) for kind in KINDS),
            job("class-straight", 12, small),
            job("class-stopped", 12, small, events=[(1, 5, "SIGTERM")]),
            job("class-stopped.2", 12, small),
            job("diffusion-straight", 12, small),
            job("diffusion-stopped", 12, small | LATE, events=[(1, 5, "SIGINT")], lag=1),
            job("diffusion-stopped.2", 12, small),
            job("mlp-diverged", 6, small, events=[(1, 4, "nan-weights")]),
            job("class-evaluated", 8, small | {"evaluations": 3}, EngineConfig(trackers=("tensorboard",))),
            job("mlp-frozen", 3, {"batch_size": ODD, "frozen": True, "augment": None}),
            job("mlp-other", 4, small, others={"seed": 3}),
            job("class-tracked", 4, small, engine=EngineConfig(trackers=("tensorboard",))),
            job("mlp-evaluated", 4, small | {"evaluations": 4}, events=[(0, 3, "broken intermediate evaluation")]),
        ]
    )


@pytest.fixture(scope="module")
def group(server: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Outcome]]]:
    """The folder of two ranks' trainings, and what each saw of each."""
    folder = tmp_path_factory.mktemp("group")
    todo = jobs(folder)
    for kind in KINDS:  # begun by one rank
        stopped = alone(replace(todo[f"{kind}-to2"], events=[(0, 2, "SIGINT")]))
        assert (stopped.step, "stopped at step 2 of 4" in stopped.error) == (2, True)
    (folder / "class-tracked").mkdir()
    (folder / "class-tracked" / "tensorboard").write_text("a file where the tracker's folder is to be")
    return folder, dict(zip(todo, together(server, *todo.values()), strict=True))


@pytest.fixture(scope="module")
def single(group: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A job done by one rank: its folder."""
    folder, done, todo = tmp_path_factory.mktemp("single"), {}, jobs(group[0])

    def run(name: str, engine: EngineConfig | None = None) -> Path:
        key = f"{name}-{engine}" if engine else name
        if key not in done:
            done[key] = folder / str(len(done))
            outcome = alone(
                replace(todo[name], folder=str(done[key]), engine=engine or EngineConfig(), fault="", events=(), lag=0)
            )
            assert outcome.error == ""
        return done[key]

    return run


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, name) for name in ("160", "odd", "halves") for kind in KINDS),
        *((kind, name) for name in ("odd", "halves") for kind in OWN),
    ],
)
def test_two_ranks_equal_one(kind: str, name: str, group: Any, single: Any) -> None:
    folder, outcomes = group
    ranks = outcomes[f"{kind}-{name}"]
    assert [rank.error for rank in ranks] == ["", ""]
    assert ranks[0].digest == ranks[1].digest  # of weights, averages, optimiser
    alike = single(f"{kind}-{'odd' if name == 'halves' else name}")
    assert_alike(alike, folder / f"{kind}-{name}", jobs(folder)[f"{kind}-{name}"])


@pytest.mark.parametrize("kind", KINDS)
def test_micro_batches_equal_one_batch(kind: str, group: Any, single: Any) -> None:
    job = jobs(group[0])[f"{kind}-odd"]
    for count in (2, 5):
        assert_alike(single(f"{kind}-odd"), single(f"{kind}-odd", EngineConfig(accumulate=count)), job)


@pytest.mark.parametrize("name", FAULTS)
def test_mistakes_would_be_seen(name: str, group: Any, single: Any) -> None:
    # Clipping and Adam hide a factor on the gradient; the norm that is logged does not.
    plain = f"{name.split('-')[0]}-odd"
    found = apart(single(plain), group[0] / name, jobs(group[0])[plain])
    assert max(found) > MISTAKE, found


def test_a_loss_of_each_ranks_own_rows_would_be_seen(tmp_path: Path) -> None:
    whole, local = (Job("class", str(tmp_path / fault), 3, PLAIN, fault=fault) for fault in ("", "local"))
    for job in (whole, local):
        assert alone(job).error == ""
    assert min(apart(Path(whole.folder), Path(local.folder), whole)) > MISTAKE


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_ranks_goes_on(kind: str, group: Any, single: Any) -> None:
    folder, outcomes = group
    straight, job = single(f"{kind}-to2"), jobs(folder)[f"{kind}-to2"]
    assert [rank.error for rank in outcomes[f"{kind}-to2"]] == ["", ""]
    assert outcomes[f"{kind}-to2"][0].told == [3, 4]
    assert_alike(straight, folder / f"{kind}-to2", job)
    assert [rank.step for rank in outcomes[f"{kind}-to1"]] == [2, 2]
    assert alone(replace(job, folder=str(folder / f"{kind}-to1"))).error == ""
    assert_alike(straight, folder / f"{kind}-to1", job)


@pytest.mark.parametrize(("kind", "step"), [("class", 5), ("diffusion", 8)])
def test_a_signal_to_one_rank_stops_all_after_the_same_step(kind: str, step: int, group: Any) -> None:
    # On GPUs (the second case) ranks ask each other after every eighth step only.
    folder, outcomes = group
    stopped, finished, straight = (outcomes[f"{kind}-{name}"] for name in ("stopped", "stopped.2", "straight"))
    message = f"TrainingInterrupted: stopped at step {step} of 12; the state is saved in {folder / f'{kind}-stopped'}"
    assert [rank.error.startswith(message) for rank in stopped] == [True, True], stopped
    assert [rank.step for rank in stopped] == [step, step]
    assert finished[0].told == list(range(step + 1, 13))
    assert {rank.digest for rank in finished} == {rank.digest for rank in straight}
    logged = figures(folder / f"{kind}-stopped", "step").tolist()
    assert logged == (list(range(1, 13)) if kind == "class" else list(range(9, 13)))


def test_two_ranks_diverge_together(group: Any) -> None:
    folder, outcomes = group[0] / "mlp-diverged", group[1]["mlp-diverged"]
    for rank in outcomes:
        assert "its gradient's norm nan at step 4 of 6. The steps of its batch are in" in rank.error
    assert saved(folder) == [2]
    assert len(json.loads((folder / DIVERGED).read_text())["rows"]) == 16


def test_rank_0_alone_evaluates_and_reports(group: Any) -> None:
    folder, (first, second) = group[0] / "class-evaluated", group[1]["class-evaluated"]
    assert (first.intermediates, second.intermediates) == ([4, 6, 8], [])
    assert (first.told, second.told) == (list(range(1, 9)), [])
    assert figures(folder, "step").tolist() == list(range(1, 9))
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (file,) = (folder / "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(file)).Reload()
    for name in ("loss", "grad_norm", "lr", "positives", "images_per_second"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(row["step"], np.float32(row[name])) for row in read_jsonl(folder / "train.jsonl")]


def test_an_error_of_an_evaluation_reaches_all_ranks(group: Any) -> None:
    ranks = group[1]["mlp-evaluated"]
    assert [rank.error for rank in ranks] == ["ClassactError: the simulator is gone."] * 2
    assert [rank.intermediates for rank in ranks] == [[1, 2], []]
    assert saved(group[0] / "mlp-evaluated") == [2, 3]


def test_features_of_a_frozen_encoder_are_shared_out(group: Any, single: Any) -> None:
    folder, outcomes = group
    ranks = outcomes["mlp-frozen"]
    assert [rank.error for rank in ranks] == ["", ""]
    assert ranks[0].digest == ranks[1].digest
    assert_alike(single("mlp-frozen"), folder / "mlp-frozen", jobs(folder)["mlp-frozen"])


def test_ranks_that_would_train_something_else(group: Any) -> None:
    first, second = (rank.error for rank in group[1]["mlp-other"])
    start = "was started with other data or settings than rank 0"
    assert first.startswith(f"ConfigError: another rank {start}, and says which. Start all 2 ranks with the same")
    assert second.startswith(f"ConfigError: rank 1 {start}: config.seed = 0, now it is 3. Start all 2 ranks")
    assert [rank.step for rank in group[1]["mlp-other"]] == [0, 0]


def test_a_tracker_that_cannot_start_ends_all_ranks(group: Any) -> None:
    pytest.importorskip("tensorboard")
    ranks = group[1]["class-tracked"]
    assert all("ConfigError: the tracker 'tensorboard' could not start" in rank.error for rank in ranks), ranks
    assert [rank.step for rank in ranks] == [0, 0]


LOST = r"ClassactError: rank {} lost another of the 2 ranks near step {} of 12 \(.*\). Run the same command again"


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(server: Any, group: Any, tmp_path: Path) -> None:
    jobs_ = jobs(tmp_path)
    step, write = jobs_["class-straight"], jobs_["diffusion-straight"]
    for job, killed, near, kept in (
        (replace(step, events=[(1, 5, "SIGKILL")]), 1, 4, [2, 4]),
        (replace(write, events=[(0, 6, "write")]), 0, 6, [2, 4]),
    ):
        ((survivor,),) = together(server, job)
        assert re.match(LOST.format(1 - killed, near), survivor.error), survivor.error
        assert saved(Path(job.folder)) == kept
        for _, path in list_checkpoints(Path(job.folder) / "checkpoints"):
            verify_folder(path)
    torn = Path(write.folder) / "checkpoints"
    assert [path.name[:14] for path in torn.glob(".*.tmp")] == [".step-00000006"]
    for job, ranks in zip((step, write), together(server, step, write), strict=True):
        assert ranks[0].told == list(range(5, 13))
        assert {rank.digest for rank in ranks} == {rank.digest for rank in group[1][f"{job.kind}-straight"]}
    assert not list(torn.glob(".*.tmp"))


@pytest.mark.slow
def test_torchrun_ends_the_others_of_a_killed_rank(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*program, engine_ranks.__file__, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=250
    )
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL) received by PID" in done.stderr
    assert saved(tmp_path) == [2, 4]
    for _, path in list_checkpoints(tmp_path / "checkpoints"):
        verify_folder(path)


def test_ranks_that_see_other_checkpoints(tmp_path: Path) -> None:
    class Elsewhere(Ranks):
        def broadcast_object(self, value: Any) -> Any:
            return 8 if isinstance(value, int) else value

        def any(self, flag: bool) -> bool:
            return flag

    made = make("mlp", tmp_path, ranks=Elsewhere(1, 2))
    with pytest.raises(CheckpointError, match=r"ranks see different checkpoints in .*: rank 1 found step 0. All"):
        made.fit()


@pytest.mark.parametrize(
    ("size", "ranks", "count"), [(7, 2, 4), (3, 4, 1), (5, 1, 6)], ids=["both", "ranks", "accumulate"]
)
def test_a_batch_that_cannot_be_cut(size: int, ranks: int, count: int) -> None:
    def cut(rows: int) -> Any:
        return make("mlp", engine=EngineConfig(accumulate=count), ranks=Ranks(ranks - 1, ranks), batch_size=rows)

    message = f"a batch of {size} cannot be cut into {ranks} ranks x {count} micro-batches. Raise batch_size, or lower"
    with pytest.raises(ConfigError, match=message):
        cut(size)
    assert cut(ranks * count).batch_size == ranks * count


@pytest.mark.parametrize("kind", ["class", "mlp"])
def test_what_cannot_be_is_refused_before_anything_is_prepared(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was prepared")

    for name in ("representation.encoder_images", "head.encoder_images", "head.ImageEncoder"):
        monkeypatch.setattr(f"classact.train.{name}", late)
    with pytest.raises(ConfigError, match=r"a batch of 2 cannot be cut into 1 ranks x 3 micro-batches"):
        make(kind, engine=EngineConfig(accumulate=3), batch_size=2)
    monkeypatch.setattr(trackers, "find_spec", lambda _: None)
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    message = r"the tracker 'wandb' needs a package that is not here \(no module named 'wandb'\): pip install 'classact"
    with pytest.raises(MissingDependencyError, match=message):
        make(kind, engine=EngineConfig(trackers=("wandb",)))


def test_trackers_whose_packages_are_here_are_required_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(trackers, "find_spec", lambda name: asked.append(name) or name)
    for name in trackers.TRACKERS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    trackers.require(("tensorboard", "wandb"))
    assert asked == ["tensorboard", "wandb"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingDependencyError, match="'wandb' needs a package"):
        trackers.require(("wandb",))


# -- stopped and continued -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels_last", ["no", "yes"])
def test_two_steps_and_a_resume_equal_all_at_once(kind: str, channels_last: str, tmp_path: Path) -> None:
    # 180 steps in batches of 50: the epoch ends in the fourth.
    straight, parts = (
        Job(kind, str(tmp_path / name), 5, {"batch_size": 50}, EngineConfig(channels_last=channels_last))
        for name in ("straight", "parts")
    )
    expected = alone(straight)
    for step in (2, 3):
        stopped = alone(replace(parts, events=[(0, step, "SIGTERM")]))
        assert stopped.error.startswith(f"TrainingInterrupted: stopped at step {step} of 5; the state is saved in")
    assert alone(parts).digest == expected.digest
    files = [tmp_path / name / "checkpoints" / "step-00000005" / STATE for name in ("straight", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    for name in ("loss", "grad_norm", "lr", "step"):
        assert figures(tmp_path / "parts", name).tolist() == figures(tmp_path / "straight", name).tolist()
    assert alone(parts).told == []


def test_how_it_is_computed_is_no_other_training(tmp_path: Path) -> None:
    job = Job("mlp", str(tmp_path), 4, events=[(0, 2, "SIGINT")])
    assert "stopped at step 2" in alone(job).error
    other = EngineConfig(2, "no", "yes", "prefetch", True, ("tensorboard",))
    assert make("mlp", tmp_path, engine=other, ranks=Ranks(1, 2)).identity() == make("mlp").identity()
    made = make("mlp", tmp_path, engine=EngineConfig(3, "no", "yes", "prefetch"), log_every=2, checkpoint_every=3)
    assert made.resume()
    made.fit()
    for kind in ("mlp", "class"):
        folder = tmp_path / kind
        assert "stopped" in alone(Job(kind, str(folder), 4, events=[(0, 2, "SIGINT")])).error
        with pytest.raises(CheckpointError, match=r"step-00000002 was made with config.batch_size = 32, now it is 30"):
            make(kind, folder, 4, batch_size=30).resume()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_saved_without_a_folder(number: int) -> None:
    made = make("mlp")
    with pytest.raises(TrainingInterrupted, match="stopped at step 3 of 4; the state is lost: no folder"):
        made.fit(lambda step, *_: os.kill(os.getpid(), number) if step == 3 else None)


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("lag", "what"), [(0, "nan"), (1, "nan"), (1, "nan-weights")])
def test_a_loss_that_is_no_number(kind: str, lag: int, what: str, tmp_path: Path) -> None:
    made = make(kind, tmp_path, 9, checkpoint_every=4, log_every=4 if lag else 1)
    made.lag = lag
    hook(made, [(0, 6, what)])
    batches = made.batches(0)
    rows = [np.sort(next(batches)).tolist() for _ in range(6)]
    rates = "0.5" if kind == "class" else "0.0002, 0.002"
    message = rf"the loss became .* at step 6 of 9. The steps of its batch are in .*json. Lower .*\(now {rates}\); the"
    told: list[int] = []
    with pytest.raises(ClassactError, match=message):
        made.fit(lambda step, *_: told.append(step))
    assert (made.step, told[-1]) == (6 + lag, 5 + lag)  # with a lag, one step has begun by then
    card = json.loads((tmp_path / DIVERGED).read_text())
    assert (card["step"], card["rows"]) == (6, rows[5])
    assert "nan" in (card["loss"], card["grad_norm"])
    assert saved(tmp_path) == [4]
    assert all(value.isfinite().all() for value in checkpoint(tmp_path, 4).values())
    again = make(kind, tmp_path, 9, checkpoint_every=4)
    again.fit()
    assert again.step == 9
    assert all(bool(value.isfinite().all()) for value in tensors(again).values())


def test_with_a_lag_nothing_unknown_is_logged_saved_or_evaluated(tmp_path: Path) -> None:
    # The step before a log, a checkpoint, an evaluation, the end.
    for step, late in ((3, {"log_every": 3}), (4, {"checkpoint_every": 4}), (5, {"evaluations": 2}), (9, {})):
        folder = tmp_path / str(step)
        made = make("mlp", folder, 9, **(LATE | late))
        made.lag = 1
        hook(made, [(0, step, "nan-weights")])
        seen: list[int] = []
        with pytest.raises(ClassactError, match=rf"norm nan at step {step} of 9"):
            made.fit(intermediate=lambda run: seen.append(run.step))  # noqa: B023
        assert (made.step, saved(folder), seen) == (step, [], [])
        assert read_jsonl(folder / "train.jsonl") == []


def test_a_lag_changes_no_bit(tmp_path: Path) -> None:
    every = {"log_every": 3, "checkpoint_every": 5}
    ends = [alone(Job("mlp", str(tmp_path / str(lag)), 7, every, lag=lag)) for lag in (0, 1)]
    assert ends[0].digest == ends[1].digest
    assert figures(tmp_path / "1", "step").tolist() == [3, 6, 7]
    assert figures(tmp_path / "1", "loss").tolist() == figures(tmp_path / "0", "loss").tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", ["memory", "CPU memory", "array memory", "cublas memory", "driver memory"])
def test_out_of_memory_says_what_to_lower(kind: str, what: str, tmp_path: Path) -> None:
    made = make(kind, tmp_path, engine=EngineConfig(accumulate=2))
    hook(made, [(0, 3, what)])
    with pytest.raises(ClassactError, match=r"out of memory at step 3 of 4\. ") as caught:
        made.fit()
    advice = "Raise accumulate (--accumulate, now 2; it changes no result), or lower batch_size (--batch-size, now 32)"
    assert advice in str(caught.value)
    assert "--loader" not in str(caught.value)
    assert ("size (now U-Net of widths 8, 16)" in str(caught.value)) == (kind != "class")
    assert "crop_size (now 28)" in str(caught.value)
    assert saved(tmp_path) == [2]


def test_out_of_memory_says_what_the_images_take(monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("class")
    assert isinstance(made.loader, ResidentLoader)
    monkeypatch.setattr(made.loader, "_tensors", {"top": torch.zeros(3 * 2**20, dtype=torch.uint8)})  # as on a GPU
    monkeypatch.setattr(engine, "free_memory", lambda _: (0, 4 * 2**20))
    hook(made, [(0, 1, "memory")])
    message = r"\(now 28\)\. The images take 3 MiB of the 4 MiB of the GPU's memory; .*--loader prefetch\) leaves them"
    with pytest.raises(ClassactError, match=message):
        made.fit()


def test_out_of_memory_in_an_evaluation(tmp_path: Path) -> None:
    def evaluation(_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    made = make("mlp", tmp_path, evaluations=2)
    with pytest.raises(ClassactError, match=r"out of memory in the evaluation after step 2 of 4\. Raise accumulate"):
        made.fit(intermediate=evaluation)
    assert saved(tmp_path) == [2]


def test_other_errors_pass_as_they_are() -> None:
    made = make("mlp")

    def broken(*_: Any) -> Any:
        raise RuntimeError("Connection closed by peer: a bug, for there is no peer")

    made.gradients = broken
    with pytest.raises(RuntimeError, match="a bug, for there is no peer"):
        made.fit()


# -- evaluations ---------------------------------------------------------------------------------------------------


def test_evaluations_are_where_the_paper_has_them() -> None:
    config = make("class", evaluations=10).config
    assert config.intermediates(1000) == list(range(550, 1001, 50))
    assert config.intermediates(7) == [4, 5, 6, 7]
    assert replace(config, evaluations_from=0.1).intermediates(1000) == list(range(100, 1001, 100))
    assert replace(config, evaluations=1).intermediates(9) == [9]
    assert replace(config, evaluations=0).intermediates(9) == []
    for share in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(ConfigError, match=f"0 < evaluations_from <= 1, got {share}"):
            replace(config, evaluations_from=share)


@pytest.mark.parametrize("kind", ["class", "mlp"])
def test_evaluations_are_no_training_time_and_repeated_after_a_resume(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    class Clock:
        perf_counter = staticmethod(lambda: clock[0])

    monkeypatch.setattr(engine, "time", Clock)
    seen: list[tuple[int, list[int], float]] = []

    def evaluation(run: Any) -> None:
        clock[0] += 1000
        seen.append((run.step, saved(tmp_path), run.seconds))

    def train(stop: int = 0) -> Any:
        made = make(kind, tmp_path, 6, evaluations=2, checkpoint_every=4)
        gradients = made.gradients

        def slow(*args: Any) -> Any:
            clock[0] += 1
            return gradients(*args)

        made.gradients = slow
        made.fit(lambda step, *_: os.kill(os.getpid(), signal.SIGINT) if step == stop else None, evaluation)
        return made

    first = 3
    assert make(kind, evaluations=2, steps=6).config.intermediates(6) == [first, 6]
    with pytest.raises(TrainingInterrupted):
        train(stop=first)  # before the evaluation
    assert seen == []
    with pytest.raises(TrainingInterrupted):
        train(stop=5)
    assert seen == [(3, [3], 3.0)]
    with pytest.raises(TrainingInterrupted):
        train(stop=6)
    assert len(seen) == 1
    made = train()
    assert seen[1:] == [(6, [5, 6], 6.0)]
    assert (made.seconds, train().seconds) == (6.0, 6.0)
    assert [seen[2][0], len(seen)] == [6, 3]  # it may have been stopped in it
    assert figures(tmp_path, "step").tolist() == [1, 2, 3, 4, 5, 6]
    assert figures(tmp_path, "seconds").tolist() == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(figures(tmp_path, "images_per_second"), 2 * 32 * (2 if kind == "mlp" else 1))


# -- how it is computed --------------------------------------------------------------------------------------------


def mapped(folder: Path) -> Demonstrations:
    data = demonstrations()
    folder.mkdir(parents=True, exist_ok=True)
    for camera, images in data.images.items():
        np.save(folder / f"{camera}.npy", images)
    return data.with_images({camera: np.load(folder / f"{camera}.npy", mmap_mode="r") for camera in data.images})


@pytest.mark.parametrize("kind", ["class", "diffusion"])
def test_every_loader_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    data, digests = mapped(tmp_path / "images"), set()
    for mode in ("resident", "prefetch", "auto"):
        made = make(kind, engine=EngineConfig(loader=mode), data=data, steps=7, batch_size=24)
        made.fit()
        digests.add(engine_ranks.digest(made))
    assert len(digests) == 1


def fetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.mark.parametrize("end", ["finished", "memory", "SIGINT", "nan"])
def test_nothing_fetches_images_once_training_ended(end: str, tmp_path: Path) -> None:
    made = make("class", tmp_path, 12, EngineConfig(loader="prefetch"))
    hook(made, [(0, 3, end)])
    during: list[int] = []
    with nullcontext() if end == "finished" else pytest.raises(ClassactError):
        made.fit(lambda *_: during.append(len(fetching())))
    assert min(during) > 0
    assert fetching() == []
    assert len(during) == {"finished": 12, "SIGINT": 3}.get(end, 2)


def assert_computed_alike(kind: str, engine: EngineConfig, folder: Path) -> None:
    plain, other = (Job(kind, str(folder / name), 3, {"batch_size": ODD}) for name in ("plain", "other"))
    assert [alone(plain).error, alone(replace(other, engine=engine)).error] == ["", ""]
    assert_alike(Path(plain.folder), Path(other.folder), plain)


@pytest.mark.parametrize("kind", KINDS)
def test_channels_last_equals_the_plain_run(kind: str, tmp_path: Path) -> None:
    last = EngineConfig(channels_last="yes")
    kernel = make(kind, engine=last).networks["encoder"].views[0].backbone.stem[0].weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert_computed_alike(kind, last, tmp_path)


def test_compiled_equals_the_plain_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The graph is taken and differentiated ahead, and not made into machine code, which takes a minute.
    compiler, calls = torch.compile, []

    def compiled(module: torch.nn.Module) -> Any:
        calls.append(module)
        return compiler(module, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compiled)
    assert_computed_alike("mlp", EngineConfig(compile="yes"), tmp_path)
    assert len(calls) == 1
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler, and there is no c++")
def test_machine_code_equals_the_plain_run(tmp_path: Path) -> None:
    assert_computed_alike("class", EngineConfig(compile="yes", channels_last="yes"), tmp_path)
    torch.compiler.reset()


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ConfigError, match=r"expected accumulate >= 1, got 0"):
        EngineConfig(accumulate=0)
    for name in ("compile", "channels_last"):
        with pytest.raises(ConfigError, match=f"unknown {name} 'maybe': available are 'auto', 'no', 'yes'"):
            EngineConfig(**{name: "maybe"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown trackers 'tensorbord': available are 'tensorboard', 'wandb'"):
        EngineConfig(trackers=("wandb", "tensorbord"))
    with pytest.raises(ConfigError, match="unknown loader 'tape': available are 'auto', 'prefetch', 'resident'"):
        EngineConfig(loader="tape")
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert [is_compiled(EngineConfig(), device) for device in (cpu, gpu)] == [False, True]
    formats = [memory_format(EngineConfig(), device) for device in (cpu, gpu)]
    assert formats == [torch.contiguous_format, torch.channels_last]
    assert not is_compiled(EngineConfig(compile="no"), gpu)
    assert memory_format(EngineConfig(channels_last="no"), gpu) == torch.contiguous_format


@pytest.mark.parametrize("own", [False, True])
def test_determinism_that_was_on_stays_on(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    made = make("mlp", engine=EngineConfig(deterministic=own))
    made.device = "cuda"  # nothing is computed there

    def state() -> tuple[bool, bool, bool]:
        warns = torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(), warns

    usual = state()
    with made._kernels():
        assert state() == (not own, own, False)
    assert state() == usual
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with made._kernels():
            assert state() == (False, True, not own)
        assert state() == (usual[0], True, True)
    finally:
        torch.use_deterministic_algorithms(usual[1], warn_only=usual[2])


def test_a_rank_that_failed_does_not_wait_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[int] = []

    class Counted(Ranks):
        def close(self) -> None:
            closed.append(self.rank)

    monkeypatch.setattr(Ranks, "from_environment", lambda _: Counted(1, 2))
    with pytest.raises(ClassactError, match="this rank alone"), training_ranks("cpu"):
        raise ClassactError("this rank alone")
    assert closed == []
    with training_ranks("cpu") as ranks:
        assert ranks.rank == 1
    assert closed == [1]
