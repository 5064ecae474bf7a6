"""The command latent-actions: what leads from one observation to the next, from demonstrations without actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classact.cli.console import print_facts, say
from classact.cli.data import sources
from classact.cli.engine import ENGINE, training_ranks
from classact.cli.flags import Device, Given, Settings, changed, flag, settings
from classact.run.presets import LATENT_ACTION_PRESETS
from classact.train.config import LatentActionTrainingConfig


@dataclass(frozen=True)
class LatentActions:
    """Learn latent actions (CLAM) from demonstrations of which few carry actions: DIR/model, for --latent-actions.

    Attributes:
        data: Demonstrations, with and without actions; several data sets are learned from together.
        out: Folder of the results. The same command continues what lies there.
        preset: Named settings. Other flags change them.
        labelled: Demonstrations whose actions are learned from: the first so many, or numbers as in 0:50,60. Without it
            all that carry actions. Those of several data sets are counted through, in their order.
        layout: Layout of the data: a JSON file or a name (docs/data.md).
        episodes: Use only the first so many demonstrations, or those of these numbers, as in 0:50,60.
        fps: Steps per second of them, fewer than recorded.
        device: Where to compute.
        html: Write the page, DIR/latent_actions.html.
        quiet: No progress bars.
    """

    data: tuple[str, ...] = flag(choices=sources)
    out: Path = flag()
    preset: str = flag("clam-cpu", choices=lambda: LATENT_ACTION_PRESETS)
    labelled: int | str | None = None
    layout: Path | None = None
    episodes: int | str | None = None
    fps: float | None = None
    device: Device = "auto"
    html: bool = True
    quiet: bool = False
    training: Given = settings(Settings(LatentActionTrainingConfig))
    engine: Given = settings(ENGINE)

    def main(self) -> None:
        from classact.data.readers import read_demonstrations
        from classact.data.readers.selection import chosen_episodes
        from classact.run.latent_actions import MODEL, learn_latent_actions
        from classact.train.config import EngineConfig
        from classact.utils.machine import choose_device

        config = changed(LATENT_ACTION_PRESETS[self.preset], self.training)
        with training_ranks(self.device) as ranks:
            data = read_demonstrations(self.data, episodes=self.episodes, layout=self.layout, fps=self.fps)
            numbers = learn_latent_actions(
                data,
                config,
                self.out,
                labelled=None if self.labelled is None else chosen_episodes(self.labelled, len(data), data.source),
                device=choose_device(self.device),
                engine=changed(EngineConfig(), self.engine),
                ranks=ranks,
                quiet=self.quiet,
            )
            if ranks.first:
                print_latent_actions(numbers)
                if self.html:
                    from classact.pages import build_latent_actions_page

                    say(f"Page: {build_latent_actions_page(self.out)}")
                say(f"Use it with: classact pretrain --latent-actions {self.out / MODEL}")


def print_latent_actions(numbers: Mapping[str, Any]) -> None:
    """How good they are, beside what says nothing."""
    data, found = numbers["data"], numbers["measures"]
    facts = {
        "labelled": f"{data['labelled']:,} of {data['episodes']:,} demonstrations",
        "next observation": f"squared error {found['reconstruction']:.4g}, of the last one {found['copy']:.4g}",
        "their actions": f"squared error {found['action_error']:.4g}, of the mean {found['action_variance']:.4g}",
    }
    if found["action_error_others"] is not None:
        facts["actions of others"] = (
            f"squared error {found['action_error_others']:.4g}, of the mean {found['action_variance_others']:.4g}"
        )
    facts["linear probe"] = f"R2 {found['probe']:.3f}"
    facts["spread of z"] = "standard deviations {:.3g} to {:.3g}".format(*found["spread"])
    facts["time"] = f"{numbers['seconds']:.0f} s"
    print_facts(f"{data['name']}: {data['episodes']:,} episodes, {data['steps']:,} steps", facts.items())
