"""Commands on demonstrations: data info, data generate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from classact.commands.console import console


@dataclass(frozen=True)
class DataInfo:
    """Read demonstrations, check them and say what they hold."""

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="A path, or 'pusht-expert'.")]
    layout: Annotated[Path | None, tyro.conf.arg(help="JSON file: which array is what (docs/policies.md).")] = None


def data_info(arguments: DataInfo) -> None:
    """Print a table."""
    import numpy as np
    from rich.table import Table

    from classact.progress import progress_bar
    from classact.readers import read_demonstrations

    with progress_bar("read demonstrations") as bar:
        data = read_demonstrations(arguments.source, progress=bar, layout=arguments.layout)
    table = Table(title=f"{data.name} ({data.source})", show_header=False, title_justify="left")
    lengths = data.lengths
    table.add_row("episodes", f"{len(data):,}")
    table.add_row(
        "steps", f"{data.num_steps:,} ({lengths.min()} to {lengths.max()} each, median {np.median(lengths):.0f})"
    )
    for label, array in (("actions", data.actions), ("proprioception", data.proprioception), ("states", data.states)):
        if array is None:
            table.add_row(label, "none")
            continue
        ranges = ", ".join(f"{a:.3g}..{b:.3g}" for a, b in zip(array.min(0), array.max(0), strict=True))
        table.add_row(label, f"{array.shape[1]} dimensions: {ranges}")
    for camera, images in data.images.items():
        size = images.nbytes / 2**20
        table.add_row(f"camera {camera}", f"{images.shape[2]} x {images.shape[1]} pixels, {size:,.0f} MiB on disk")
    if not data.images:
        instead = "no states to render from" if data.states is None else "rendered on demand from states"
        table.add_row("cameras", f"none recorded; {instead}")
    schema = data.schema
    table.add_section()
    keys = ", ".join(f"{key} {size}" for key, size in schema.proprioception)
    table.add_row("proprioception keys", keys or "none")
    table.add_row("language", f"{schema.language} numbers for each episode" if schema.language else "none")
    space = "none: each dimension is a number by itself" if schema.actions is None else schema.actions.describe()
    table.add_row("action space", space)
    table.add_row("assumed", schema.assumption or "nothing: all of this is declared")
    table.add_section()
    table.add_row("fingerprint", data.fingerprint()[:16])
    console().print(table)


@dataclass(frozen=True)
class DataGenerate:
    """Make the Push-T demonstrations that come with classact again, from seeds (about half an hour)."""

    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="File to write (.npz).")]
    simulator: Annotated[str, tyro.conf.arg(help="Simulator by name.")] = "pusht"
    episodes: Annotated[int, tyro.conf.arg(help="Successful episodes to keep.")] = 300
    seed: Annotated[int, tyro.conf.arg(help="Seed of the first start.")] = 0
    workers: Annotated[int, tyro.conf.arg(help="Processes; 0: one per core. Changes no result.")] = 0


def data_generate(arguments: DataGenerate) -> None:
    """Run the expert; resumable."""
    import multiprocessing

    from classact.progress import progress_bar
    from classact.sims.experts.generate import generate_demonstrations

    with progress_bar("expert demonstrations") as bar:
        generate_demonstrations(
            arguments.simulator,
            episodes=arguments.episodes,
            seed=arguments.seed,
            workers=arguments.workers or multiprocessing.cpu_count(),
            out=arguments.out,
            progress=bar,
        )
    print(f"Demonstrations: {arguments.out}")
