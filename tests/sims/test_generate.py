from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import expert_fakes
import fakes
from classact.cli.main import main
from classact.data import readers
from classact.data.readers.generated import read, read_header
from classact.errors import ConfigError, SimulatorError
from classact.evaluation.config import FIRST_SEED
from classact.sims import SIMULATORS, make_simulator
from classact.sims.experts import attempts, generate
from classact.sims.experts.attempts import END_SEED, HOPELESS, Plan
from classact.sims.experts.base import ScriptRecorder
from classact.sims.experts.generate import generate_demonstrations
from classact.sims.rendering import appearance_seed


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, entry in expert_fakes.ENTRIES.items():
        monkeypatch.setitem(SIMULATORS._entries, name, entry)
    (tmp_path / "faults").mkdir()
    monkeypatch.setenv(expert_fakes.FAULTS, str(tmp_path / "faults"))


class Bars:
    """Remembers what progress bars were told."""

    def __init__(self) -> None:
        self.told: dict[str, list[tuple[Any, ...]]] = {}

    @contextmanager
    def __call__(self, title: str) -> Iterator[Any]:
        self.told[title] = []
        yield lambda *values: self.told[title].append(values)


# -- which seeds -----------------------------------------------------------------------------------


def test_the_first_kept_seeds_are_chosen_in_any_order_of_ending() -> None:
    failing = {1: "a", 3: "b", 4: "a"}
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 0, 4, 3, 1]):
        plan = Plan(0, 3)
        for seed in order:
            assert plan.chosen() is None
            plan.outcomes[seed] = failing.get(seed, "")
        plan.outcomes[7] = plan.outcomes[9] = ""  # more than needed
        assert plan.chosen() == [0, 2, 5]
        assert plan.counts([0, 2, 5]) == (6, {"a": 2, "b": 1})
        assert (plan.kept, plan.wanted) == (3, 3)


def test_each_task_gets_its_share() -> None:
    plan = Plan(4, 2, tasks=3)
    plan.outcomes = {4: "", 5: "", 6: "", 7: "slow", 8: "", 9: "", 11: "slow", 12: "slow"}
    assert plan.chosen() is None  # task 1 has only seed 4
    assert plan.kept == 5
    assert plan.next_seed([]) == 10
    plan.outcomes[10] = ""
    assert plan.chosen() == [4, 5, 6, 8, 9, 10]
    assert plan.counts([4, 5, 6, 8, 9, 10]) == (7, {"slow": 1})  # 11 and 12 came after what is chosen


def test_next_seed_fills_gaps_and_starts_nothing_useless() -> None:
    plan = Plan(0, 2)
    assert plan.next_seed([]) == 0
    assert plan.next_seed([0, 1]) == 2  # a spare one, should one of them fail
    plan.outcomes = {1: "", 2: ""}
    assert plan.next_seed([]) == 0  # it may come before them
    assert plan.next_seed([0]) is None
    tasks = Plan(0, 1, tasks=2)
    assert tasks.next_seed([0]) == 1
    assert tasks.next_seed([0, 1]) == 2
    tasks.outcomes = {0: "", 1: "slow"}
    assert tasks.next_seed([]) == 3


def test_seeds_end_where_evaluation_begins() -> None:
    assert END_SEED == FIRST_SEED
    plan = Plan(END_SEED - 1, 2)
    assert plan.next_seed([]) == END_SEED - 1
    with pytest.raises(ConfigError, match=r"start seeds have reached 100000.*with 0 of 2 demonstrations"):
        plan.next_seed([END_SEED - 1])


# -- generation ------------------------------------------------------------------------------------


def test_generation(tmp_path: Path) -> None:
    bars, out = Bars(), tmp_path / "walk.npz"
    data = generate_demonstrations("walk", episodes=5, out=out, stage=bars)
    assert (data.name, data.simulator, len(data)) == ("walk", "walk", 5)
    header = read_header(out)
    assert header["seeds"] == [0, 3, 4, 7, 8]
    assert header["attempts"] == 9
    assert header["not_kept"] == {"no success within 12 steps": 2, "no way": 2}
    assert header["expert"] == "expert_fakes:script"
    assert set(data.versions) == {"classact", "numpy", "pymunk"}
    assert data.states is not None
    for episode, seed in zip(data, header["seeds"], strict=True):
        assert episode.states is not None
        assert (episode.states[:, 1] == seed).all()
        moved = np.cumsum(episode.actions[:, 0], dtype=np.float64)
        assert np.allclose(episode.states[1:, 0], moved[:-1])
        assert moved[-1] > 1
    told = bars.told["expert of walk"]
    assert told[-1] == (5, 5, "4 not kept")
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)
    assert not (tmp_path / "walk.npz.work").exists()


def test_generation_does_not_depend_on_workers(tmp_path: Path) -> None:
    for workers in (1, 3):
        generate_demonstrations("walks", episodes=3, out=tmp_path / str(workers) / "walks.npz", workers=workers)
    assert (tmp_path / "1/walks.npz").read_bytes() == (tmp_path / "3/walks.npz").read_bytes()
    data, header = read(tmp_path / "1/walks.npz"), read_header(tmp_path / "1/walks.npz")
    assert [seed % 3 for seed in header["seeds"]].count(1) == 3
    assert len(data) == 9
    assert data.language is not None
    assert data.language[:, 1].tolist() == [seed % 3 for seed in header["seeds"]]
    assert header["instructions"] == [f"walk number {seed % 3}" for seed in header["seeds"]]
    assert header["tasks"] == 3
    assert data.versions["language"] == "invented"


def test_images_are_stored_under_the_shift(tmp_path: Path) -> None:
    bars, out = Bars(), tmp_path / "walk-dynamic"
    data = generate_demonstrations(
        "walk", episodes=2, out=out, seed=3, shift="dynamic", image_size=6, cameras=("side", "front"), stage=bars
    )
    assert data.images_shift == "dynamic"
    assert data.images["side"].shape == (data.num_steps, 6, 6, 3)
    assert isinstance(data.images["side"], np.memmap)
    assert data.states is not None
    seen = 50 * data.states[:, 0]
    appearance = np.array([appearance_seed(3, e) % 97 for e in (0, 1)])[data.episode_index()]
    assert (data.images["front"][:, 0, 0, 0] == seen.astype(int)).all()
    assert (data.images["front"][:, 2, 3, 1] == appearance).all()
    assert (data.images["side"][:, 2, 3, 1] == appearance + 100).all()
    assert read_header(out)["images"] == {"shift": "dynamic", "size": 6, "seed": 3, "cameras": ["side", "front"]}
    assert bars.told["images, dynamic"][-1] == (2 * data.num_steps, 2 * data.num_steps)
    states_only = generate_demonstrations("walk", episodes=2, out=tmp_path / "walk.npz", seed=3)
    assert states_only.fingerprint() == data.fingerprint()


def test_killed_generation_continues_to_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "a/walk.npz", tmp_path / "b/walk.npz"
    generate_demonstrations("walk", episodes=4, out=whole)
    command = [sys.executable, expert_fakes.__file__, "walk", "4", str(killed), "2"]
    work = killed.with_name("walk.npz.work")
    with subprocess.Popen(command, env=os.environ | {expert_fakes.PAUSE: "0.5"}) as process:
        deadline = time.monotonic() + 240
        # Which of the two processes is first does not matter here, only that seed 0 is stored.
        while len(list(work.glob("[0-9]*.npz"))) < 2 or not (work / "0.npz").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not killed.exists()
    (work / "1.npz").write_bytes(b"")  # and the disk lost one
    marked = work / "0.npz"
    before = marked.stat().st_mtime_ns
    seen: list[int] = []

    @contextmanager
    def look(_: str) -> Iterator[Any]:
        yield lambda *_: seen.append(marked.stat().st_mtime_ns)

    generate_demonstrations("walk", episodes=4, out=killed, stage=look)
    assert killed.read_bytes() == whole.read_bytes()
    assert set(seen) == {before}  # seed 0 was not tried again
    assert 1 <= len(seen) < 8
    assert not work.exists()


def test_stopped_generation_keeps_its_attempts(tmp_path: Path) -> None:
    whole, stopped = tmp_path / "a/walk.npz", tmp_path / "b/walk.npz"
    generate_demonstrations("walk", episodes=3, out=whole)

    @contextmanager
    def stop(_: str) -> Iterator[Any]:
        def press(*_: object) -> None:
            raise KeyboardInterrupt

        yield press

    with pytest.raises(KeyboardInterrupt):
        generate_demonstrations("walk", episodes=3, out=stopped, stage=stop)
    assert not stopped.exists()
    work = stopped.with_name("walk.npz.work")
    assert [file.name for file in work.glob("[0-9]*.npz")] == ["0.npz"]
    recorder = ScriptRecorder("walk", expert_fakes.ENTRIES["walk"])
    attempts.store_attempt(work, recorder(3))  # another process got ahead
    bars = Bars()
    generate_demonstrations("walk", episodes=3, out=stopped, stage=bars)
    assert stopped.read_bytes() == whole.read_bytes()
    assert [done for done, *_ in bars.told["expert of walk"]] == [2, 2, 3]  # seeds 1, 2, 4
    assert not work.exists()


# -- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["die", "hang"])
def test_lost_processes_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    generate_demonstrations("walk", episodes=3, out=tmp_path / "a/walk.npz")
    monkeypatch.setattr(attempts, "START_SECONDS", 8.0 if fault == "hang" else 60.0)
    monkeypatch.setattr(attempts, "STEP_SECONDS", 0.0)
    (tmp_path / "faults/3").write_text(f"once {fault}")
    generate_demonstrations("walk", episodes=3, out=tmp_path / "b/walk.npz", workers=2)
    assert not (tmp_path / "faults/3").exists()
    assert (tmp_path / "b/walk.npz").read_bytes() == (tmp_path / "a/walk.npz").read_bytes()


def test_a_seed_that_always_kills(tmp_path: Path) -> None:
    (tmp_path / "faults/3").write_text("die")
    with pytest.raises(
        SimulatorError, match=r"3 expert processes were lost with start seed 3.*it died \(exit code -9\)"
    ):
        generate_demonstrations("walk", episodes=3, out=tmp_path / "walk.npz")
    assert {file.stem for file in (tmp_path / "walk.npz.work").glob("*.npz")} == {"0", "1", "2"}


def test_bugs_in_scripts_stop_the_generation(tmp_path: Path) -> None:
    (tmp_path / "faults/3").write_text("raise")
    with pytest.raises(SimulatorError, match=r"failed from start seed 3: \n(.*\n)*ValueError: a bug in the script"):
        generate_demonstrations("walk", episodes=3, out=tmp_path / "walk.npz")


def test_an_action_beyond_limits_is_a_failure_of_the_expert(tmp_path: Path) -> None:
    (tmp_path / "faults/3").write_text("beyond")
    generate_demonstrations("walk", episodes=3, out=tmp_path / "walk.npz")
    header = read_header(tmp_path / "walk.npz")
    assert header["seeds"] == [0, 4, 7]
    assert any(reason.startswith("walk: dimension 0 of the action is 10, 4.5 times") for reason in header["not_kept"])


def test_a_simulator_that_does_not_start_is_no_failure_of_the_expert(tmp_path: Path) -> None:
    generate_demonstrations("walk", episodes=3, out=tmp_path / "a/walk.npz")
    (tmp_path / "faults/3").write_text("once start")
    with pytest.raises(SimulatorError, match="attempt failed from start seed 3: GL cannot start"):
        generate_demonstrations("walk", episodes=3, out=tmp_path / "b/walk.npz")
    assert {file.stem for file in (tmp_path / "b/walk.npz.work").glob("*.npz")} == {"0", "1", "2"}
    generate_demonstrations("walk", episodes=3, out=tmp_path / "b/walk.npz")
    assert (tmp_path / "b/walk.npz").read_bytes() == (tmp_path / "a/walk.npz").read_bytes()


def test_errors_of_workers_keep_their_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No extra, no assets: said as what it is, not as a failure of the expert."""
    lacking = replace(expert_fakes.ENTRIES["walk"], factory="expert_fakes:lacking")
    monkeypatch.setattr(generate, "SIMULATORS", {"walk": lacking})
    with pytest.raises(ConfigError, match="the attempt failed from start seed 0: install it"):
        generate_demonstrations("walk", episodes=1, out=tmp_path / "walk.npz")


def test_an_expert_that_never_succeeds(tmp_path: Path) -> None:
    with pytest.raises(SimulatorError, match=f"{HOPELESS} attempts in a row up to seed 99.*{HOPELESS} times: never"):
        generate_demonstrations("hopeless", episodes=1, out=tmp_path / "x.npz")


# -- commands --------------------------------------------------------------------------------------


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["data", "generate", "walks", "--episodes", "1", "--workers", "1"]) == 0
    assert capsys.readouterr().out == "Demonstrations: walks.npz\n"
    flags = ["--shift", "dynamic", "--image-size", "5", "--workers", "1", "--seed", "3"]
    assert main(["data", "generate", "walk", "--episodes", "2", *flags]) == 0
    assert capsys.readouterr().out == "Demonstrations: walk-dynamic\n"
    assert main(["data", "info", "walks.npz"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "simulator │ walks",
        "pymunk",
        "3 different instructions",
        "6, 3 not kept",
        "2 x no way",
        "language invented",
        "none recorded; rendered on demand from states, by simulator walks",
    ):
        assert part in printed
    assert main(["data", "info", "walk-dynamic"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("camera front │ 5 x 5 pixels", "shift │ dynamic, which the images show", "language │ none"):
        assert part in printed
    assert main(["data", "generate", "walk", "--out", "walks.npz"]) == 1
    assert "error: walks.npz exists" in capsys.readouterr().err


def test_states_of_an_unknown_simulator_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = fakes.demonstrations().with_images({})
    monkeypatch.setattr(readers, "read_demonstrations", lambda *_, **__: data)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["data", "info", "somewhere"]) == 0
    assert "none recorded; states of an unknown simulator" in capsys.readouterr().out


# -- bad input -------------------------------------------------------------------------------------


def test_generation_refuses(tmp_path: Path) -> None:
    out = tmp_path / "x.npz"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"simulator": "nowhere"}, "unknown simulator 'nowhere': available are"),
        ({"simulator": "unscripted"}, "unknown expert 'unscripted': available are .*'pusht'.*'walk'"),
        ({"episodes": 0}, "at least 1 episode and 1 worker, got 0 and 1"),
        ({"seed": END_SEED}, "first start seed in 0..99999, got 100000"),
        ({"shift": "fixed"}, "x.npz: expected a folder, named without .npz"),
        ({"out": tmp_path / "x"}, "x: expected a file named"),
        ({"out": tmp_path}, "expected a file named"),
        ({"out": tmp_path, "shift": "fixed"}, "exists. Delete it, or write to another name"),
        ({"image_size": 64}, "image size and cameras are those of stored images: they need a shift"),
    )
    for changes, message in cases:
        with pytest.raises(ConfigError, match=message):
            generate_demonstrations(**({"simulator": "walk", "episodes": 1, "out": out} | changes))
    assert [file.name for file in tmp_path.iterdir()] == ["faults"]  # nothing was begun


def test_work_of_other_settings_is_refused(tmp_path: Path) -> None:
    work = tmp_path / "x.npz.work"
    attempts.open_work(work, {"simulator": "walk", "first_seed": 3})
    with pytest.raises(ConfigError, match=r"attempts made with other settings \(.*first_seed.*\)"):
        generate_demonstrations("walk", episodes=1, out=tmp_path / "x.npz")


# -- simulators ------------------------------------------------------------------------------------


def test_aloha_transfer(tmp_path: Path) -> None:
    pytest.importorskip("gym_aloha", reason="needs the extra aloha")
    out = tmp_path / "aloha.npz"
    data = generate_demonstrations("aloha-transfer", episodes=2, out=out)
    assert (data.actions.shape[1], data.simulator) == (14, "aloha-transfer")
    assert {"gym-aloha", "mujoco"} <= set(data.versions)
    assert not data.schema.assumption
    simulator = make_simulator("aloha-transfer")
    simulator.reset(read_header(out)["seeds"][1])  # here without the episode that came before it in the worker
    assert data[1].states is not None
    for state, action in zip(data[1].states, data[1].actions, strict=True):
        assert np.array_equal(simulator.get_state(), state)
        simulator.step(action)
    simulator.close()
