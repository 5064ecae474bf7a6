"""The command similarity: which timesteps of a data set are alike, and what a choice of K means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classact.cli.console import print_facts, print_notes, say
from classact.cli.data import sources
from classact.cli.flags import Given, Settings, changed, counted, flag, from_file, settings
from classact.similarity.apart import Apart, share_apart
from classact.similarity.config import SimilarityAnalysisConfig, SimilarityConfig
from classact.utils.codec import from_json

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 52  # of the histogram in characters


ANALYSIS = Settings(
    SimilarityAnalysisConfig,
    inline=("similarity",),
    about={"batch-size": "Of the training that positives per batch are computed for."},
)


@dataclass(frozen=True)
class Similarity:
    """Measure which timesteps of demonstrations lead to similar actions, and what K means: DIR/similarity.html.

    Under torchrun all ranks measure; rank 0 writes and prints.

    Attributes:
        data: Demonstrations; several data sets are measured as one.
        out: Folder of the results. The same command continues what lies there.
        config: Settings to start from: DIR/similarity.json of another measurement. Other flags change them.
        html: Write the page.
        layout: JSON file that says which array of the data is what, or a name, as in umi (docs/data.md).
        episodes: Use only the first so many demonstrations, or those of these numbers, as in 0:50,60.
        fps: Steps per second of them, fewer than recorded.
        quiet: No progress bars.
    """

    data: tuple[str, ...] = flag(positional=True, choices=sources)
    out: Path = flag()
    config: Path | None = None
    html: bool = True
    layout: Path | None = None
    episodes: int | str | None = None
    fps: float | None = None
    quiet: bool = False
    analysis: Given = settings(ANALYSIS)

    def main(self) -> None:
        from classact.data.readers import read_demonstrations
        from classact.run.presets import rate_of
        from classact.run.similarity import analyze_similarity
        from classact.utils.progress import teller
        from classact.utils.ranks import Ranks
        from classact.utils.storage import check_writable

        config = SimilarityAnalysisConfig()
        if self.config is not None:
            config = SimilarityAnalysisConfig(from_file(SimilarityConfig, self.config))
        ranks = Ranks.from_environment()
        try:
            ranks.on_first(lambda: check_writable(self.out, folder=True))
            data = read_demonstrations(self.data, episodes=self.episodes, layout=self.layout, fps=self.fps)
            told = teller(quiet=self.quiet or not ranks.first)
            config = changed(config, counted(ANALYSIS, self.analysis, lambda: rate_of(data), told))
            numbers = analyze_similarity(data, config, self.out, ranks=ranks, quiet=self.quiet)
            if ranks.first:
                print_similarity(numbers)
                if self.html:
                    from classact.pages import build_similarity_page

                    say(f"Page: {build_similarity_page(self.out)}")
        finally:
            ranks.close()


def print_similarity(numbers: Mapping[str, Any]) -> None:
    """The table, the histogram and the warnings."""
    data, positives, batch = (numbers[key] for key in ("data", "positives", "batch"))
    measured = f"{numbers['pairs']:,} of {numbers['all_pairs']:,} pairs"
    within = f"exact: all {numbers['pairs']:,} pairs"
    if not numbers["exact"]:
        within = f"K right to within {100 * numbers['epsilon']:.2g} points: {measured}"
    of_some = "" if numbers["anchors"] == data["steps"] else f" ({numbers['anchors']:,} anchors sampled)"
    ranks = "" if numbers["ranks"] == 1 else f" x {numbers['ranks']} ranks"
    histogram = histogram_lines(numbers["histogram"], numbers["threshold"])
    shares = (positives["same_episode"], numbers["same_episode_chance"])
    facts = {
        "similarity": _setting(from_json(SimilarityConfig, numbers["settings"], "settings")),
        "threshold": f"{numbers['threshold']:.6g} ({within})",
        "pairs kept": f"{numbers['kept']:,} of {numbers['pairs']:,} ({_percent(numbers['kept'] / numbers['pairs'])})",
        "positives per anchor": f"median {positives['median']:,.0f}, from {positives['least']:,} to "
        f"{positives['most']:,}{of_some}",
        "anchors with none": _percent(positives["none"]),
        "in the same episode": "{} of positive pairs, {} of all".format(*map(_percent, shares)),
        f"in a batch of {batch['batch_size']:,}": f"{batch['positives']:.3g} positives expected per anchor, none for "
        f"{_percent(batch['none'])}",
        **apart_facts(numbers.get("apart") or {}),
        "distances": "\n".join(histogram),
        "time": f"{sum(numbers['seconds'].values()):.1f} s on {numbers['device']}{ranks}",
    }
    print_facts(f"{data['name']}: {data['episodes']:,} episodes, {data['steps']:,} steps", facts.items())
    print_notes(numbers["warnings"])


def apart_facts(apart: Mapping[str, Any]) -> dict[str, str]:
    """How far apart things are in positives among early timesteps, and at other horizons."""
    facts = {}
    for number, row in enumerate(apart.get("rows", ())):
        lines = [share_apart(apart["early"], from_json(Apart, row, "apart"))]
        ratios = [(one["horizon"], one["rows"][number]["ratio"]) for one in apart["horizons"]]
        others = [f"{ratio:.2f} ({horizon})" for horizon, ratio in ratios if ratio is not None]
        if len(others) > 1:
            lines.append(f"by horizon: {', '.join(others)}")
        facts[f"{row['name']}, early"] = "\n".join(lines)
    return facts


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if 0 < share < 0.1 else f"{100 * share:.1f} %" if share else "0 %"


def _setting(config: SimilarityConfig) -> str:
    metric = "L2" if config.metric == "l2" else f"DTW ({config.cost})"
    band = "" if config.band is None else f", band {config.band}"
    means = "" if config.stride == 1 else f" in means of {config.stride}"
    return f"{metric}{band}, horizon {config.horizon}{means}, K {100 * config.quantile:g} %"


def histogram_lines(histogram: Mapping[str, Sequence[float]], threshold: float, width: int = WIDTH) -> list[str]:
    """A histogram over logarithmic bins as a line of bars of at most ``width``, above range and threshold.

    Its edges (B + 1,) begin with 0, then ascend by equal factors.
    """
    edges, counts = list(histogram["edges"]), list(histogram["counts"])
    filled = [b for b, count in enumerate(counts) if count]
    first, last = (filled[0], filled[-1] + 1) if filled else (0, len(counts))
    size = -(-(last - first) // width)
    groups = [sum(counts[b : b + size]) for b in range(first, last, size)]
    most = max([*groups, 1])
    bars = "".join(" " if not g else BARS[min(int(len(BARS) * g / most), len(BARS) - 1)] for g in groups)
    at = next((g for g, b in enumerate(range(first, last, size)) if threshold <= edges[min(b + size, last)]), None)
    mark = len(groups) - 1 if at is None else at
    low, high = f"{edges[first]:.3g}", f"{edges[last]:.3g}"
    lines = [bars, " " * mark + "▲", f"{low}{' ' * max(len(bars) - len(low) - len(high), 1)}{high}"]
    lines[1] += f" {threshold:.4g}" if mark < width - 12 else ""
    return [*lines, "(logarithmic; ▲ threshold)"]
