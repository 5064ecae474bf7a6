from __future__ import annotations

import pytest

from classact.utils import progress
from classact.utils.progress import progress_bar


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("train", quiet=True) as bar:
        bar(1, 2)
        bar(2, 2, "loss 3")
    assert capsys.readouterr() == ("", "")


def test_lines_without_a_terminal(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("train") as bar:
        for step in range(1, 41):
            clock.now += 1
            bar(step, 40, "loss 3")
    lines = capsys.readouterr().err.splitlines()
    # Every fifteen seconds, and the last.
    assert [line.split(",")[0] for line in lines] == ["train: 15 of 40", "train: 30 of 40", "train: 40 of 40"]
    assert lines[0] == "train: 15 of 40, 15 s, 25 s left  loss 3"


def test_time_left_of_a_resumed_training_counts_what_is_done_now(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("train") as bar:
        for step in range(1001, 1021):
            clock.now += 1
            bar(step, 1100)
    assert capsys.readouterr().err.splitlines()[0] == "train: 1,015 of 1,100, 15 s, 85 s left  "
