from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_sweep
import numpy as np
import pytest
from fake_sweep import IDENTITY, MatrixSweep, N
from numpy.testing import assert_array_equal

from classact.errors import ConfigError, StorageError, TrainingInterrupted
from classact.similarity import dtw_pairwise, job, make_sweep
from classact.similarity.counts import DistanceCounts
from classact.similarity.job import ARRAYS, count_pairs, cut_units, unit_pairs
from classact.similarity.reference import dtw
from classact.similarity.stream import Sweep
from classact.utils.interruptions import interruptible
from classact.utils.ranks import Ranks

MATRIX = fake_sweep.example_matrix()
LIMIT = fake_sweep.threshold(MATRIX)
PROGRAM = Path(fake_sweep.__file__)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are written after every unit; syncing is for power cuts."""
    monkeypatch.setattr(job, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(job, "SAVE_FACTOR", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def count(folder: Path | None, sweep: Sweep | None = None, **changes: Any) -> DistanceCounts:
    given: dict[str, Any] = {"n": N, "limit": LIMIT, "identity": IDENTITY}
    return count_pairs(folder, sweep or MatrixSweep(MATRIX), **(given | changes))


def expected(limit: float = LIMIT) -> tuple[np.ndarray, np.ndarray]:
    distances = MATRIX[np.triu_indices(N, 1)]
    values, counts = np.unique(distances[distances <= np.float32(limit)], return_counts=True)
    return values, counts


def check(counts: DistanceCounts, limit: float = LIMIT) -> None:
    for found, wanted in zip(counts.items(), expected(limit), strict=True):
        assert_array_equal(found, wanted)
    assert counts.total == expected(limit)[1].sum()


def only_part(folder: Path) -> Path:
    (part,) = folder.iterdir()
    return part


def same_parts(one: Path, two: Path) -> None:
    for a, b in zip(sorted(only_part(one).iterdir()), sorted(only_part(two).iterdir()), strict=True):
        assert (a.name, a.read_bytes()) == (b.name, b.read_bytes())


def interrupt_after(units: int, number: int = signal.SIGINT) -> Any:
    """A progress callback that presses Ctrl-C."""
    calls = 0

    def callback(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == units:  # the first call comes before the first unit
            os.kill(os.getpid(), number)

    return callback


def start(*arguments: object, ranks: int = 1) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *launcher, str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[str]) -> str:
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    return output


# Units


@pytest.mark.parametrize("n", [2, 3, 64, 65, 150, 25_650, 254_000, 10_000_000, 2**31 - 1])
def test_units_cover_the_anchors_with_equal_work(n: int) -> None:
    cut = cut_units(n)
    pairs = unit_pairs(cut, n)
    assert (cut[0], cut[-1]) == (0, n)
    assert (np.diff(cut) > 0).all()
    assert pairs.sum() == n * (n - 1) // 2
    assert len(pairs) <= job.MOST_UNITS
    if n >= 10_000:
        assert len(pairs) >= job.LEAST_UNITS
        assert pairs.max() < 1.3 * pairs.mean()
    if n == 254_000:
        assert not (cut[:-1] % 128).any()
        assert 0.5 * job.UNIT_PAIRS < pairs.mean() < 1.1 * job.UNIT_PAIRS


def test_nothing_to_compare() -> None:
    with pytest.raises(ConfigError, match="expected at least 2 windows to compare, got 1"):
        cut_units(1)


# One process


def test_counts_in_memory_and_in_a_folder(tmp_path: Path) -> None:
    in_memory = MatrixSweep(MATRIX)
    check(count(None, in_memory))
    assert in_memory.calls == len(cut_units(N)) - 1
    check(count(tmp_path))
    only_part(tmp_path)
    again = MatrixSweep(MATRIX)
    check(count(tmp_path, again))
    assert again.calls == 0


def test_counts_of_the_reference(tmp_path: Path) -> None:
    windows = fake_sweep.stream(n=30, horizon=4).windows(np.arange(30))
    sweep = MatrixSweep(fake_sweep.reference_matrix(windows))
    distances = np.array([dtw(windows[i], windows[j]) for i in range(30) for j in range(i + 1, 30)], np.float32)
    counts = count(tmp_path, sweep, n=30, limit=float(distances.max()))
    assert_array_equal(np.repeat(*counts.items()), np.sort(distances))


def test_counts_of_the_cpu_sweep(tmp_path: Path) -> None:
    stream = fake_sweep.stream()
    matrix = dtw_pairwise(stream.windows(np.arange(N)))
    counts = count(tmp_path, make_sweep(stream), limit=30.0)
    distances = matrix[np.triu_indices(N, 1)]
    assert_array_equal(np.repeat(*counts.items()), np.sort(distances[distances <= 30]))


def test_no_limit(tmp_path: Path) -> None:
    check(count(tmp_path, limit=np.inf), np.inf)
    check(count(tmp_path, limit=np.inf), np.inf)


def test_progress(tmp_path: Path) -> None:
    calls: list[tuple[int, int, str]] = []
    with pytest.raises(TrainingInterrupted):
        count(tmp_path, progress=interrupt_after(20))
    count(tmp_path, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert {call[1] for call in calls} == {N * (N - 1) // 2}
    assert done == sorted(set(done))
    assert done[-1] == N * (N - 1) // 2
    assert done[0] == unit_pairs(cut_units(N), N)[:20].sum()
    assert calls[-1][2] == f"{expected()[1].sum():,} kept"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_continued(tmp_path: Path, number: int) -> None:
    count(tmp_path / "straight")
    units = len(cut_units(N)) - 1
    with pytest.raises(TrainingInterrupted, match=rf"stopped after 7 of {units} units; .* saved in .*folder"):
        count(tmp_path / "folder", progress=interrupt_after(7, number))
    with pytest.raises(TrainingInterrupted, match=rf"stopped after 20 of {units} units"):
        count(tmp_path / "folder", progress=interrupt_after(13, number))
    only_part(tmp_path / "folder")  # the second launch took over the part of the first
    rest = MatrixSweep(MATRIX)
    check(count(tmp_path / "folder", rest))
    assert rest.calls == units - 20
    same_parts(tmp_path / "folder", tmp_path / "straight")


def test_a_later_signal_acts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with interruptible() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # torchrun's, for the same Ctrl-C
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted()
        monkeypatch.setattr("classact.utils.interruptions.AGAIN_SECONDS", -1.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_parts_are_written_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    monkeypatch.setattr(job, "write_folder", lambda path, _: written.append(path))
    monkeypatch.setattr(job, "SAVE_SECONDS", 3600.0)
    count(tmp_path)
    assert len(written) == 1


# Parts


def stop(folder: Path, units: int) -> Path:
    """A launch that is stopped after ``units`` more units; what was there is put back. Returns its part."""
    folder.mkdir(exist_ok=True)
    before = shutil.copytree(folder, folder.with_name(f"{folder.name}-before"))
    with pytest.raises(TrainingInterrupted):
        count(folder, progress=interrupt_after(units))
    part = only_part(folder)
    shutil.copytree(before, folder, dirs_exist_ok=True)
    shutil.rmtree(before)
    return part


def test_pairs_are_never_counted_twice(tmp_path: Path) -> None:
    # Killed between writing a part and deleting the one it took over: both are there.
    stop(tmp_path, 9)
    stop(tmp_path, 4)
    assert len(list(tmp_path.iterdir())) == 2
    check(count(tmp_path))
    only_part(tmp_path)


def test_killed_when_all_was_counted(tmp_path: Path) -> None:
    check(count(tmp_path / "straight"))
    stop(tmp_path / "folder", len(cut_units(N)) - 1)
    sweep = MatrixSweep(MATRIX)
    check(count(tmp_path / "folder", sweep))
    assert sweep.calls == 0
    same_parts(tmp_path / "folder", tmp_path / "straight")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"identity": IDENTITY | {"data": "talk"}},
            r"part-\w+ was made with identity.data = 'walk', now it",
        ),
        (
            {"identity": {**IDENTITY, "settings": {"horizon": 16}}},
            "identity.settings.cost = 'sqeuclidean', now it is None",
        ),
        ({"limit": 2.5}, "made with limit = .*, now it is 2.5. Choose another folder"),
    ],
)
def test_parts_of_other_data_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    part = stop(tmp_path, 3) / ARRAYS
    before = part.read_bytes()
    with pytest.raises(ConfigError, match=message):
        count(tmp_path, **changes)
    assert part.read_bytes() == before
    count(tmp_path)
    with pytest.raises(ConfigError, match=message):
        count(tmp_path, **changes)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty"])
def test_damaged_parts_are_counted_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    part = stop(tmp_path, 9) / ARRAYS
    content = part.read_bytes()
    middle = len(content) - 40
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    part.write_bytes({"truncated": content[:-9], "flipped": flipped, "text": b"hello", "empty": b""}[damage])
    with caplog.at_level(logging.WARNING, "classact"):
        check(count(tmp_path))
    assert f"{part}" in caplog.text
    assert "Its pairs are counted again." in caplog.text
    only_part(tmp_path)
    if damage == "flipped":
        assert "expected" in caplog.text


def test_a_damaged_result_is_counted_again(tmp_path: Path) -> None:
    count(tmp_path)
    part = only_part(tmp_path) / ARRAYS
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    check(count(tmp_path))
    assert (only_part(tmp_path) / ARRAYS).read_bytes() == whole


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".part-1234.77.abcd.tmp").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    count(tmp_path)
    (tmp_path / "notes.txt").unlink()
    only_part(tmp_path)


def test_a_part_that_vanishes(tmp_path: Path) -> None:
    # Rank 1 of 2, whose folder is another one than rank 0's, leaves nothing here.
    class Lonely(Ranks):
        def barrier(self) -> None: ...
        def broadcast_object(self, value: Any) -> Any:
            return value

    with pytest.raises(StorageError, match=r"lack 32 of 64 units. Is it on a disk that all ranks share"):
        count(tmp_path, ranks=Lonely(0, 2))


def test_several_ranks_need_a_folder() -> None:
    with pytest.raises(ConfigError, match="2 ranks exchange their counts as files: give a folder"):
        count(None, ranks=Ranks(0, 2))


# Processes that die, and several of them


def same_files(one: Path, two: Path) -> None:
    for name in ("counts", "positives"):
        same_parts(one / name, two / name)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    finish(start("both", folder))
    return folder


@pytest.mark.parametrize("call", [5, 90])  # of 64 units to count, and 64 more
def test_killed_and_continued_gives_the_same_bytes(tmp_path: Path, straight: Path, call: int) -> None:
    process = start("both", tmp_path, 0, 0, call)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == -signal.SIGKILL, output
    output = finish(start("both", tmp_path))
    calls = int(output.rsplit(": ", 1)[1].split()[0])
    assert calls == 128 - (call - 1)
    same_files(tmp_path, straight)


def test_two_ranks_give_the_same_bytes_although_one_died(tmp_path: Path, straight: Path) -> None:
    process = start("both", tmp_path, 0.01, 1, 11, ranks=2)
    output = process.communicate(timeout=240)[0]
    assert process.returncode not in (0, None), output
    parts = list((tmp_path / "counts").glob("part-*"))
    assert len(parts) == 2, output  # rank 0 was stopped while it counted, or waited
    output = finish(start("both", tmp_path, ranks=2))
    for rank in range(2):
        assert f"rank {rank} talks" in output
        assert f"rank {rank} of 2" in output
    same_files(tmp_path, straight)
