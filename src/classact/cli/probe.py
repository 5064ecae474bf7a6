"""The command probe: what a run's representation is worth, without rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from classact.cli.console import console, print_notes, say
from classact.cli.flags import Device, flag
from classact.sims.shifts import SHIFTS

LOWER, HIGHER = "↓", "↑"  # which way is better


@dataclass(frozen=True)
class Probe:
    """Measure a run's representation without rollouts: action error, alignment, view invariance; RUN/probe.json.

    Attributes:
        run: Folder of a run with a policy.
        encoder: "learned"; "untrained": random weights; "state": the simulator's true state. The last two are written
            to RUN/probe-ENCODER.json.
        heldout_sample: Held-out timesteps that are retrieved for.
        pairs: Pairs of timesteps of which distances are correlated.
        seed: Of all samples and intervals.
        shift: Visual shift that states are drawn under twice. Default: that of the run.
        json: Write to this file instead.
        device: auto (a GPU if there is one), cpu or cuda.
        quiet: No progress bars.
    """

    run: Path = flag(positional=True)
    encoder: Literal["learned", "untrained", "state"] = "learned"
    heldout_sample: int = 2000
    pairs: int = 100_000
    seed: int = 0
    shift: str | None = flag(None, choices=lambda: SHIFTS)
    json: Path | None = None
    device: Device = "auto"
    quiet: bool = False

    def main(self) -> None:
        from classact.run.folder import Run
        from classact.run.probe import probe_file, probe_run, write_probe
        from classact.utils.storage import check_writable

        run = Run(self.run)
        check_writable(self.json or probe_file(run, self.encoder))
        result = probe_run(
            run,
            encoder=self.encoder,
            queries=self.heldout_sample,
            pairs=self.pairs,
            seed=self.seed,
            shift=self.shift,
            device=self.device,
            quiet=self.quiet,
        )
        file = write_probe(run, result, self.json)
        print_probe(result)
        say(f"Probe: {file}")


def print_probe(result: Mapping[str, Any]) -> None:
    """All metrics with their 95 % intervals, one column for each representation."""
    from rich.table import Table

    queries = result["queries"]
    out = console()
    # Without padding inside the borders, two representations fit into 80 columns.
    title = f"{result['data']['name']}, encoder {result['encoder']}"
    table = Table(title=title, title_justify="left", pad_edge=False, collapse_padding=True)
    names = list(result["representations"])
    for _ in range(2):
        table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for row in probe_rows(result):
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    out.print(
        f"{queries['steps']:,} steps of {queries['episodes']} episodes ({queries['kind']}) against {queries['bank']:,} "
        f"of {queries['bank_episodes']}; 95 % intervals over episodes in brackets, "
        f"arrows to what is better",
        soft_wrap=True,
    )
    out.print(table)
    print_notes(result["notes"])
    if "skipped" in result["views"]:
        out.print(f"View invariance was not measured: {result['views']['skipped']}.", soft_wrap=True)


def probe_rows(result: Mapping[str, Any]) -> list[tuple[str, ...] | None]:
    """Lines of the table: name, which way is better (an arrow), a cell for each representation; None between groups."""
    names = list(result["representations"])
    found = [result["representations"][name] for name in names]
    anchors = result["anchors"]
    rows: list[tuple[str, ...] | None] = []
    for metric, title in (("dtw", "DTW"), ("l2", "L2")):
        for at, row in enumerate(found[0]["action_error"]):
            cells = (_cell(metrics["action_error"][at][metric]) for metrics in found)
            rows.append((f"{title} error, k = {row['k']}", LOWER, *cells))
        for anchor, name in (("random", "random chunk"), ("mean", "mean chunk"), ("nearest", "best there is")):
            rows.append((f"  {name}", "", *[_cell(anchors[anchor][metric])] * len(names)))
        rows.append(None)
    (ranked,) = (key for key in found[0] if key.startswith("ndcg@"))
    (others,) = (key for key in found[0] if key.startswith("other_episodes@"))
    for key, title, better in (
        (ranked, ranked.upper(), HIGHER),
        ("rank_correlation", "rank correlation", HIGHER),
        (others, f"other episodes@{others.partition('@')[2]}", HIGHER),
        ("other_episodes_chance", "  by chance", ""),
        ("alignment", "alignment", LOWER),
        ("alignment_other_episodes", "  of other episodes", LOWER),
        ("alignment_chance", "  of all pairs", ""),
        ("uniformity", "uniformity", LOWER),
        ("effective_rank", "effective rank", ""),
    ):
        rows.append((title, better, *(_cell(metrics[key]) for metrics in found)))
    rows.append(("  of dimensions", "", *(str(metrics["dimensions"]) for metrics in found)))
    views = result["views"]
    if "skipped" in views:
        return rows
    rows.append(None)
    for key, title, better in (
        ("cosine_same", "state drawn twice", HIGHER),
        ("cosine_different", "  different states", LOWER),
        ("margin", "  difference", HIGHER),
        ("same_state", "same state found", HIGHER),
        ("nearly_same_state", f"  within {views['tolerance']} steps", HIGHER),
    ):
        rows.append((title, better, *(_cell(views["representations"][name][key]) for name in names)))
    return rows


def _cell(metric: Mapping[str, float | None]) -> str:
    value, low, high = (metric[part] for part in ("value", "low", "high"))
    if value is None:
        return "not defined"
    text = _number(value)
    return text if low is None or high is None else f"{text} ({_number(low)} to {_number(high)})"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:#.3g}" if abs(value) >= 1 else f"{value:.3f}"
