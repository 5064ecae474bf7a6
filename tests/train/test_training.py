from __future__ import annotations

import logging
import math
import multiprocessing
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

import fakes
import kill_runner
from classact.data.lowdim import LowDim
from classact.data.types import Demonstrations
from classact.data.windows import window_indices
from classact.errors import CheckpointError, ClassactError, ConfigError, DataError, TrainingInterrupted
from classact.models.average import ema_decay, update_ema
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.models.weights import load_weights
from classact.objectives import SoftInfoNCEConfig, objective_config
from classact.objectives.soft_infonce import soft_infonce
from classact.policies import ImageLatents, RetrievalConfig, RetrievalPolicy
from classact.run.folder import Run
from classact.similarity import ActionSimilarity, SimilarityConfig, similarity_identity
from classact.similarity.distribution import write_distribution
from classact.train import checkpoints, engine
from classact.train import representation as training
from classact.train.augment import Part, augment
from classact.train.batches import epoch_batches
from classact.train.checkpoints import list_checkpoints, load_latest
from classact.train.config import AugmentConfig, EngineConfig
from classact.train.engine import step_generator
from classact.train.optim import learning_rate, make_optimizer
from classact.train.representation import Trainer, encoder_images, random_views
from classact.utils.storage import read_jsonl

FOUR = 4 * 16 / sum(fakes.STEPS)
"""Epochs of four steps."""


pytestmark = pytest.mark.usefixtures("quick")  # the subprocesses compute on one thread as well


def trainer(folder: Path | None = None, **changes: Any) -> Trainer:
    return Trainer(fakes.demonstrations(), fakes.pretrain_config(**({"epochs": FOUR} | changes)), folder)


# Batches and random numbers


@pytest.mark.parametrize(("n", "batch"), [(20, 5), (23, 5), (7, 7)])
def test_every_epoch_is_a_permutation(n: int, batch: int) -> None:
    count = 3 * n
    drawn = np.concatenate(list(islice(epoch_batches(n, batch, 0, 0), math.ceil(count / batch))))[:count]
    epochs = drawn.reshape(3, n)
    for epoch in epochs:
        assert_array_equal(np.sort(epoch), np.arange(n))
    assert not np.array_equal(epochs[0], epochs[1])


def test_batches_are_a_function_of_seed_and_step() -> None:
    straight = list(islice(epoch_batches(23, 5, 3, 0), 12))
    for first in range(12):
        assert_array_equal(next(epoch_batches(23, 5, 3, first)), straight[first])
    assert not np.array_equal(next(epoch_batches(23, 5, 4, 0)), straight[0])


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    for rows in islice(epoch_batches(6, 100, 0, 0), 3):
        assert_array_equal(np.sort(rows), np.arange(6))
    config = fakes.pretrain_config(batch_size=1000, epochs=2)
    assert config.steps(120) == 2
    large = Trainer(fakes.demonstrations(), config)
    large.fit()
    assert large.step == 2


def test_augmentations_are_a_function_of_seed_and_step() -> None:
    cpu = torch.device("cpu")
    draws = {(s, k): torch.rand(4, generator=step_generator(s, k, cpu)).tolist() for s in (0, 1) for k in (0, 1)}
    assert len({tuple(v) for v in draws.values()}) == 4
    assert torch.rand(4, generator=step_generator(1, 1, cpu)).tolist() == draws[1, 1]


@pytest.mark.parametrize("color", ["none", "hsv"])
def test_steps_word_by_word_to_the_last_bit(color: str) -> None:
    """What a step computes, written down plainly for one process and one camera: results that are published were made
    so, in this order of sums."""
    views = AugmentConfig(color=color, feature_noise=0.01)
    made, twin = trainer(augment=views), trainer(augment=views)
    config, encoder, average = twin.config, twin.encoder, twin.average
    optimizer = make_optimizer(encoder.parameters(), config.optimizer)
    for step, batch in enumerate(islice(epoch_batches(120, 16, 0, 0), 4)):
        stats = made.train_step(batch)
        rows, generator = np.sort(batch), step_generator(0, step, torch.device("cpu"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.optimizer, step, 4)
        pixels = augment(torch.from_numpy(twin.demonstrations.images["top"][rows]), 28, views, generator)
        z = encoder(encoder.normalize(pixels)[:, None])
        z = z + 0.01 * torch.randn(z.shape, generator=generator)
        loss = soft_infonce(z, twin.similarity.weights_tensor(rows), temperature=config.objective.temperature)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(encoder.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        decay = ema_decay(step + 1, config.optimizer.ema_power)
        update_ema(average, encoder, decay)
        assert (stats["loss"], stats["grad_norm"]) == (loss.item(), norm.item())
    assert fakes.equal(made.encoder, encoder)
    assert fakes.equal(made.average, average)


# Compiling


def compiling(monkeypatch: pytest.MonkeyPatch, made: Callable[[torch.nn.Module], Any], choice: str) -> Trainer:
    """A training whose encoder is compiled by ``made``."""
    monkeypatch.setattr(torch, "compile", made)
    monkeypatch.setattr(training, "is_compiled", lambda *_: True)
    config = fakes.pretrain_config(epochs=FOUR)
    return Trainer(fakes.demonstrations(), config, engine=EngineConfig(compile=choice))


def raising(error: Exception) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise error

    return call


class BackendError(RuntimeError):
    """As torch wraps what its compiler raises."""

    inner_exception = ValueError("no working compiler\nwas found in PATH")


@pytest.mark.parametrize("error", [BackendError("backend raised:"), ValueError("no working compiler")])
@pytest.mark.parametrize("early", [False, True])
def test_what_cannot_be_compiled_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, early: bool
) -> None:
    calls: list[Any] = []

    def compiler(module: torch.nn.Module) -> Any:
        calls.append(module)
        return raising(error)() if early else raising(error)

    plain = trainer().fit()
    with caplog.at_level(logging.WARNING):
        found = compiling(monkeypatch, compiler, "auto")
        assert fakes.equal(found.fit(), plain)
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile failed (ValueError: no working compiler): the encoder runs uncompiled, slower but alike."
    ]
    assert len(calls) == 1
    message = r"torch.compile failed \(ValueError: no working compiler\). Train with --compile no"
    with pytest.raises(ClassactError, match=message):
        compiling(monkeypatch, compiler, "yes").fit()


@pytest.mark.parametrize("choice", ["auto", "yes"])
def test_what_is_no_failure_to_compile_passes(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    full = compiling(monkeypatch, lambda _: raising(torch.OutOfMemoryError("CUDA out of memory")), choice)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        full.train_step(np.arange(16))
    calls: list[int] = []

    def compiler(module: torch.nn.Module) -> Any:
        def once(*args: Any, **options: Any) -> Any:
            calls.append(1)
            return module(*args, **options) if len(calls) == 1 else raising(ValueError("a bug"))()

        return once

    later = compiling(monkeypatch, compiler, choice)
    later.train_step(np.arange(16))
    with pytest.raises(ValueError, match="a bug"):
        later.train_step(np.arange(16))


# Resuming


def test_the_log_has_each_step_once_after_resuming(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        trainer(tmp_path).fit(fakes.stop_after(3))
    for _, path in list_checkpoints(tmp_path / "checkpoints")[1:]:
        (path / checkpoints.STATE).unlink()  # step 3 is lost, so it is trained and logged again
    trainer(tmp_path).fit()
    assert [row["step"] for row in read_jsonl(tmp_path / "train.jsonl")] == [1, 2, 3, 3, 4]
    rows = Run(tmp_path).read_train_log()
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    optimizer = fakes.pretrain_config().optimizer
    for row in rows:
        assert row["lr"] == learning_rate(optimizer, row["step"] - 1, 4)
        assert row["epoch"] == row["step"] * 16 / 120
        assert (row["steps"], np.isfinite(row["loss"]), row["images_per_second"] > 0) == (4, True, True)


@pytest.fixture(scope="module")
def server() -> Any:
    """Starts processes that hold everything imported already, on one thread each: spinning ones starve each other."""
    context = multiprocessing.get_context("forkserver")
    # Optimisers import dynamo.
    context.set_forkserver_preload(["classact.train.representation", "torch._dynamo", "pytest"])
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
            patch.setenv(variable, "1")
        forkserver.ensure_running()  # the server takes them over; here Numba would notice that they changed
    return context


def launch(server: Any, folder: Path, pause: float, **options: int) -> tuple[Any, Any]:
    here, there = server.Pipe(duplex=False)
    process = server.Process(target=kill_runner.train, args=(there, str(folder), pause), kwargs=options)
    process.start()
    there.close()
    return process, here


@pytest.fixture(scope="module")
def uninterrupted(server: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("straight")
    process, _pipe = launch(server, folder, 0.0)
    process.join(240)
    assert process.exitcode == 0
    return (folder / "encoder" / "model.safetensors").read_bytes()


def finish(server: Any, folder: Path) -> bytes:
    process, _pipe = launch(server, folder, 0.0)
    process.join(240)
    assert process.exitcode == 0
    return (folder / "encoder" / "model.safetensors").read_bytes()


def test_killed_at_ten_random_moments_ends_with_the_same_bits(
    server: Any, tmp_path: Path, uninterrupted: bytes
) -> None:
    rng = np.random.default_rng(0)
    reached = []
    for _ in range(10):
        process, pipe = launch(server, tmp_path, 0.04, most=5)
        for _ in range(rng.integers(1, 5)):
            pipe.recv()
        time.sleep(rng.uniform(0, 0.06))  # a step takes at least 0.04 s; every second one writes a checkpoint
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        state = load_latest(tmp_path / "checkpoints")
        reached.append(0 if state is None else state.step)
        assert not (tmp_path / "encoder").exists()
    assert reached == sorted(reached)
    assert 0 < reached[-1] < kill_runner.STEPS
    assert finish(server, tmp_path) == uninterrupted
    assert [row["step"] for row in Run(tmp_path).read_train_log()] == list(range(1, kill_runner.STEPS + 1))
    left = {path.name for path in (tmp_path / "checkpoints").iterdir() if not path.name.startswith(".")}
    assert left == {"step-00000058", "step-00000060"}


def test_killed_in_the_middle_of_writing_a_checkpoint(server: Any, tmp_path: Path, uninterrupted: bytes) -> None:
    for number, kept in ((1, []), (3, [2, 4])):
        process, _pipe = launch(server, tmp_path, 0.0, die_at_save=number)
        process.join(240)
        assert process.exitcode == -signal.SIGKILL
        assert [step for step, _ in list_checkpoints(tmp_path / "checkpoints")] == kept
        assert len(list((tmp_path / "checkpoints").glob(".*.tmp"))) >= 1
    assert finish(server, tmp_path) == uninterrupted


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer(tmp_path).fit()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# What a folder refuses


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, r"config.seed = 0, now it is 7"),
        ({"encoder": EncoderConfig(width=0.5, image_size=32, crop_size=28)}, r"encoder.width = 0.25, now it is 0.5"),
        ({"similarity": SimilarityConfig(quantile=0.2, pairs=4000)}, r"similarity.quantile = 0.1, now it is 0.2"),
        ({"epochs": 2.0}, r"config.epochs = 0.5333333333333333, now it is 2.0"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    trainer(tmp_path).fit()
    with pytest.raises(CheckpointError, match=rf"step-00000004 was made with .*{message}.*--out.*remove that folder"):
        trainer(tmp_path, **changes).fit()


@pytest.mark.parametrize("objective", ["class", "byol"])
@pytest.mark.parametrize(("there", "here"), [("avx512_bf16", "sse2"), ("sse2", "amx_bf16")])
@pytest.mark.parametrize("former", [False, True])
def test_a_checkpoint_decides_what_auto_means(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, here: str, objective: str, former: bool
) -> None:
    """It goes on as it began on machines with and without bfloat16, to the same bits; ``former``: by an identity that
    calls the precision "auto", as checkpoints did before."""
    native, other = ("bfloat16", "float32") if "bf16" in there else ("float32", "bfloat16")
    settings = {"objective": objective_config(objective, ()), "checkpoint_every": 1}
    straight = trainer(precision=native, **settings).fit()
    monkeypatch.setattr(engine, "_cpu_flags", lambda: there)
    with monkeypatch.context() as patch:
        if former:
            patch.setattr(training, "spelled_out", lambda settings, _: settings)
        with pytest.raises(TrainingInterrupted):
            trainer(tmp_path, precision="auto", **settings).fit(fakes.stop_after(2))
    monkeypatch.setattr(engine, "_cpu_flags", lambda: here)
    with pytest.raises(CheckpointError, match=f"with config.precision = '{native}', now it is '{other}'"):
        trainer(tmp_path, precision=other, **settings).resume()
    for precision in (native, "auto"):
        again = trainer(tmp_path, precision=precision, **settings)
        assert again.resume()
        assert again.step == 2
    assert fakes.equal(again.fit(), straight)


def test_other_data_are_refused(tmp_path: Path) -> None:
    trainer(tmp_path).fit()
    config = fakes.pretrain_config(epochs=FOUR)
    with pytest.raises(CheckpointError, match="was made with data = "):
        Trainer(fakes.demonstrations(seed=1), config, tmp_path).fit()
    data = fakes.demonstrations()
    darker = data.with_images({"top": np.asarray(data.images["top"]) // 2})
    with pytest.raises(CheckpointError, match="was made with images = "):
        Trainer(darker, config, tmp_path).fit()


def test_weights_of_another_architecture_name_the_tensor(tmp_path: Path) -> None:
    wide = ImageEncoder(EncoderConfig(width=0.5, image_size=32, crop_size=28))
    with pytest.raises(CheckpointError, match=r"x.safetensors: .* has shape \(.*\), expected \(.*another architecture"):
        load_weights(trainer().encoder, wide.state_dict(), tmp_path / "x.safetensors")


def test_unusable_data_and_settings() -> None:
    data = fakes.demonstrations()
    with pytest.raises(DataError, match=r"unknown camera 'wrist': available are 'top' in walks"):
        Trainer(data, fakes.pretrain_config(encoder=EncoderConfig(cameras=("wrist",), image_size=32, crop_size=28)))
    with pytest.raises(DataError, match=r"walks: expected images of 64 x 64 pixels for this encoder, got 32 x 32"):
        Trainer(data, fakes.pretrain_config(encoder=EncoderConfig()))
    with pytest.raises(ConfigError, match=r"walks \(memory\): K = 1e-05 of 7,140 pairs selects no pair.*Raise K"):
        Trainer(data, fakes.pretrain_config(similarity=SimilarityConfig(quantile=1e-5, pairs=4000)))
    with pytest.raises(ConfigError, match=r"unknown precision 'half': available are 'auto', 'bfloat16', 'float32'"):
        fakes.pretrain_config(precision="half")
    with pytest.raises(ConfigError, match=r"expected batch_size >= 2, got 1"):
        fakes.pretrain_config(batch_size=1)


def test_episodes_shorter_than_the_window_are_padded() -> None:
    data = fakes.demonstrations(lengths=(3, 1, 5, 24))
    short = Trainer(data, fakes.pretrain_config(batch_size=8, similarity=SimilarityConfig(quantile=0.4, pairs=2000)))
    short.fit()
    points = short.similarity.stream.windows(np.arange(33))
    assert_array_equal(points[3], points[3, :1].repeat(16, axis=0))  # the episode of one step
    assert_array_equal(points[0, 2:], points[2, :1].repeat(14, axis=0))


def test_a_horizon_longer_than_every_episode() -> None:
    data = fakes.demonstrations(lengths=(3, 1, 5, 4))
    with pytest.raises(ConfigError, match=r"walks \(memory\): a horizon of 16 steps is longer than every episode"):
        Trainer(data, fakes.pretrain_config(batch_size=8))


def test_cross_episode_pairs_ignore_what_is_of_one_episode() -> None:
    config = {"objective": SoftInfoNCEConfig(pairs="cross-episode")}
    one = Trainer(fakes.demonstrations(lengths=(60,)), fakes.pretrain_config(**config))
    stats = one.train_step(np.arange(16))
    assert (stats["loss"], stats["positives"], stats["anchors"]) == (0.0, 0.0, 0.0)
    several = trainer(**config)
    assert several.train_step(np.arange(120))["anchors"] > 0


# Learning


def chunk_error(encoder: ImageEncoder, known: Demonstrations, new: Demonstrations) -> float:
    """Mean distance in pixels of retrieved from demonstrated chunks on unseen episodes."""
    latents = ImageLatents(encoder, LowDim.fit(known))
    policy = RetrievalPolicy.build(latents, known, RetrievalConfig(k=8, temperature=0.005))
    neighbors = policy.search(latents.demonstrations(new))
    chunk = np.einsum("bk,bktd->btd", neighbors.weights, policy.chunks(neighbors.rows))
    wanted = new.actions[window_indices(new.episode_ends, 16)]
    return float(np.linalg.norm(chunk - wanted, axis=-1).mean())


# Several views

TWO = EncoderConfig(width=0.25, image_size=32, crop_size=28, cameras=("top", "wrist"))


def test_each_camera_has_random_views_of_its_own() -> None:
    images = torch.from_numpy(fakes.demonstrations().images["top"][:16])
    both, config = {"top": images, "wrist": images}, AugmentConfig(color="hsv")

    def views(encoder: EncoderConfig, part: Part) -> torch.Tensor:
        own = {camera: array[part.rows] for camera, array in both.items()}
        return random_views(own, encoder, config, torch.Generator().manual_seed(0), part)

    whole = views(TWO, Part(slice(0, 16), 16))
    assert whole.shape == (16, 2, 3, 28, 28)
    assert not torch.isclose(whole[:, 0], whole[:, 1]).flatten(1).all(dim=1).any()
    single = views(replace(TWO, cameras=("top",)), Part(slice(0, 16), 16))
    assert torch.equal(whole[:, :1], single)  # a second camera changes nothing for the first
    parts = [views(TWO, Part(rows, 16)) for rows in (slice(0, 5), slice(5, 16))]
    assert torch.allclose(torch.cat(parts), whole, rtol=0, atol=1e-3)


def test_the_images_that_an_encoder_of_two_views_needs() -> None:
    data = fakes.two_views(fakes.demonstrations())
    assert list(encoder_images(data, replace(TWO, cameras=("wrist", "top")))) == ["wrist", "top"]
    with pytest.raises(DataError, match=r"unknown camera 'wrist': available are 'top' in walks"):
        Trainer(fakes.demonstrations(), fakes.pretrain_config(encoder=TWO))
    mixed = data.with_images({"top": data.images["top"], "wrist": data.images["wrist"][:, :30]})
    with pytest.raises(DataError, match=r"expected images of 32 x 32 pixels .*, got 30 x 32 of camera 'wrist'"):
        Trainer(mixed, fakes.pretrain_config(encoder=TWO))


def test_shared_views_resume_to_the_same_bits(tmp_path: Path) -> None:
    data = fakes.two_views(fakes.demonstrations())
    config = fakes.pretrain_config(epochs=FOUR, encoder=replace(TWO, shared=True))
    straight = Trainer(data, config).fit()
    with pytest.raises(TrainingInterrupted):
        Trainer(data, config, tmp_path).fit(fakes.stop_after(2))
    assert fakes.equal(Trainer(data, config, tmp_path).fit(), straight)
    other = data.with_images({**data.images, "wrist": np.asarray(data.images["wrist"]) // 2})
    with pytest.raises(CheckpointError, match=r"was made with images.wrist = "):
        Trainer(other, config, tmp_path).fit()
    with pytest.raises(CheckpointError, match="was made with "):
        Trainer(data, replace(config, encoder=TWO), tmp_path).fit()


def test_learns_from_two_views_what_neither_shows(tmp_path: Path) -> None:
    walks = fakes.demonstrations(lengths=(40,) * 6)
    # The same timesteps under other noise, and without proprioception, which would give the place away.
    known, again = (
        replace(data, proprioception=np.zeros_like(data.proprioception))
        for data in (fakes.two_views(walks), fakes.two_views(walks, seed=2))
    )
    config = replace(fakes.pretrain_config(epochs=4), batch_size=40)
    errors, ends = {}, {}
    for cameras in (("top", "wrist"), ("top",), ("wrist",)):
        folder = tmp_path / "-".join(cameras)
        made = Trainer(known, replace(config, encoder=replace(TWO, cameras=cameras)), folder)
        errors[cameras] = chunk_error(made.fit(), known, again)
        ends[cameras] = np.mean(losses(folder)[-6:])
        assert ends[cameras] < np.mean(losses(folder)[:3])
    assert ends["top", "wrist"] < min(ends["top",], ends["wrist",]), ends
    assert errors["top", "wrist"] < 0.7 * min(errors["top",], errors["wrist",]), errors


# A similarity that was measured before


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_jsonl(folder / "train.jsonl")]


def test_a_measured_similarity_trains_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, config = fakes.demonstrations(), fakes.pretrain_config()
    found = ActionSimilarity(data, config.similarity)
    folder = tmp_path / "similarity"
    write_distribution(
        folder / "distribution", found.distribution, similarity_identity(found.stream, config.similarity)
    )
    expected = Trainer(data, config, tmp_path / "here").fit()
    monkeypatch.setattr("classact.similarity.model.fit_distribution", None)  # nothing is measured again
    trained = Trainer(data, config, tmp_path / "there", similarity_folder=folder).fit()
    assert losses(tmp_path / "there") == losses(tmp_path / "here")
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
    other = replace(config, similarity=replace(config.similarity, horizon=8))
    with pytest.raises(ConfigError, match=r"was made with settings\.horizon = 16, now it is 8"):
        Trainer(data, other, similarity_folder=folder)
