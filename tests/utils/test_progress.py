from __future__ import annotations

import io
import os
import sys

import pytest

from classact.utils import progress
from classact.utils.progress import duration, progress_bar, teller


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(progress, "time", made)
    return made


def test_durations_in_words() -> None:
    found = [duration(seconds) for seconds in (0.25, 59.94, 90, 3599, 5400)]
    assert found == ["0.2 s", "59.9 s", "2 min", "1 h 0 min", "1 h 30 min"]


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


def test_time_left_where_many_are_done_at_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("evaluate") as bar:
        for step in range(200, 1001, 200):
            clock.now += 20
            bar(step, 2000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "evaluate: 200 of 2,000, 20 s  "
    assert lines[1] == "evaluate: 400 of 2,000, 40 s, 160 s left  "


def test_no_time_left_is_promised_before_anything_is_done(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("train") as bar:
        for share in range(100):
            clock.now += 1
            bar(0, 40, f"features: {share}%")
        for step in range(1, 41):
            clock.now += 1
            bar(step, 40)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 0 of 40, 15 s  features: 14%"
    assert lines[6] == "train: 5 of 40, 105 s, 35 s left  "  # a second each, whatever came before


class Closed:
    """What descriptors do whose other end is gone."""

    def isatty(self) -> bool:
        raise ValueError("I/O operation on closed file")

    def write(self, _: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise OSError(5, "Input/output error")


@pytest.mark.parametrize("stream", [None, Closed()])
def test_news_that_nobody_can_read_stop_no_work(
    stream: Closed | None, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    say = teller()
    assert say is not None
    say("news")
    with progress_bar("train") as bar:
        clock.now += 60
        bar(1, 2)
        bar(2, 2)
    assert capsys.readouterr().out == ""  # nor do they take the place of results


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 7


@pytest.mark.parametrize(
    ("term", "columns", "bar"), [("xterm", 120, True), ("xterm", 0, True), ("dumb", 120, False), ("xterm", 20, False)]
)
def test_bars_are_for_terminals_that_can_redraw_a_line(
    term: str, columns: int, bar: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))
    monkeypatch.setenv("TERM", term)
    assert progress._can_redraw() == bar
