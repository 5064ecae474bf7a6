"""Commands on demonstrations: data info, data generate."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from classact.cli.console import print_facts, print_ranges, say
from classact.cli.flags import flag
from classact.data.readers import EMBEDDED, READERS
from classact.errors import DataError
from classact.sims import SIMULATORS
from classact.sims.shifts import SHIFTS
from classact.utils.progress import duration

if TYPE_CHECKING:
    from classact.data.types import Demonstrations

MAX_TASKS = 8
MAX_RANGES = 32  # of vectors with more dimensions, the range of all is shown, not of each
QUANTILES = {"least": 0.0, "1 %": 0.01, "10 %": 0.1, "median": 0.5, "90 %": 0.9, "99 %": 0.99, "largest": 1.0}


def sources() -> Iterable[str]:
    """What demonstrations can be read from, for the help."""
    return (*EMBEDDED, f"paths of formats {', '.join(READERS)}")


@dataclass(frozen=True)
class DataInfo:
    """Read demonstrations, check them and say what they hold; of unknown ones, list the arrays and propose a layout.

    Attributes:
        source: Demonstrations.
        layout: JSON file that says which array of the data is what, or its name, as in umi (docs/data.md).
        propose: File to write a proposed layout to, which is then looked at and passed as --layout.
        sheet: File of a contact sheet to write (.png).
    """

    source: str = flag(positional=True, choices=sources)
    layout: Path | None = None
    propose: Path | None = None
    sheet: Path | None = None

    def main(self) -> None:
        import numpy as np

        from classact.data.preview import write_preview
        from classact.data.readers import generated, read_demonstrations
        from classact.errors import UndeclaredError
        from classact.utils.storage import check_writable

        for file in (self.propose, self.sheet):
            if file is not None:
                check_writable(file)
        if self.propose is not None:
            print_proposal(self.source, self.propose)
            return
        try:
            data = read_demonstrations(self.source, layout=self.layout)
        except UndeclaredError:
            if self.layout is None:
                print_proposal(self.source)
            raise
        if self.sheet is not None:
            say(f"Contact sheet: {write_preview(data, self.sheet)}")
        lengths, schema = data.lengths, data.schema
        span = f"{lengths.min()} to {lengths.max()} each, median {np.median(lengths):.0f}"
        facts: list[tuple[str, str] | None] = [
            ("episodes", f"{len(data):,}"),
            ("steps", f"{data.num_steps:,} ({span})"),
            ("time", _time(data.num_steps, _rate(data))),
        ]
        for label in ("actions", "proprioception", "states"):
            array = getattr(data, label)
            words = "none" if array is None or not array.shape[1] else f"{array.shape[1]} dimensions"
            if label == "actions" and array.shape[1] and data.labelled is not None:
                words += f", of {int(data.labelled.sum()):,} of {len(data):,} episodes"
            facts.append((label, words))
        for camera, images in data.images.items():
            by = getattr(images, "decoder", "")
            made = f", decoded by {by}" if by else ""
            facts.append((f"camera {camera}", f"{images.shape[2]} x {images.shape[1]} pixels, {len(images):,}{made}"))
        if not data.images:
            if data.states is None:
                instead = "no states to render from"
            elif data.simulator:
                instead = f"rendered on demand from states, by simulator {data.simulator}"
            else:
                instead = "states of an unknown simulator; --simulator names one that can render them"
            facts.append(("cameras", f"none recorded; {instead}"))
        if data.images_shift:
            facts.append(("shift", f"{data.images_shift}, which the images show"))
        words = "none"
        if data.language is not None:
            different = len(np.unique(data.language, axis=0))
            words = f"{schema.language} numbers for each episode, {different} different instructions"
        if data.instructions:
            counts = Counter(data.instructions).most_common(MAX_TASKS)
            more = len(set(data.instructions)) - len(counts)
            tasks = "\n".join(f"{count} x {task or 'no words'}" for task, count in counts)
            facts.append(("tasks", tasks + (f"\nand {more} more" if more else "")))
        space = "none: each dimension is a number by itself" if schema.actions is None else schema.actions.describe()
        facts += [
            None,
            ("proprioception keys", ", ".join(f"{key} {size}" for key, size in schema.proprioception) or "none"),
            ("language", words),
            ("action space", space),
            ("assumed", schema.assumption or "nothing: all of this is declared"),
            ("not read", ", ".join(data.unread) or "nothing"),
        ]
        if data.simulator:
            versions = ", ".join(f"{package} {version}" for package, version in data.versions.items())
            facts += [None, ("simulator", data.simulator), ("recorded with", versions or "unknown versions")]
        if generated.matches(Path(data.source)):
            facts.append(("expert's attempts", _attempts(generated.read_header(Path(data.source)))))
        print_facts(f"{data.name} ({data.source})", [*facts, None, ("fingerprint", data.fingerprint()[:16])])
        print_ranges(dimension_ranges(data), QUANTILES)


def dimension_ranges(data: Demonstrations) -> list[tuple[str, list[float]]]:
    """Name of each dimension, and its :data:`QUANTILES`; of arrays with many, one line for all."""
    import numpy as np

    from classact.data.validate import dimension_name

    found: list[tuple[str, list[float]]] = []
    for name, values in (
        ("action", data.labelled_actions()),
        ("proprioception", data.proprioception),
        ("state", data.states),
    ):
        if values is None or not values.size:
            continue
        if values.shape[1] > MAX_RANGES:
            found.append((f"{name}, all {values.shape[1]}", np.quantile(values, list(QUANTILES.values())).tolist()))
            continue
        for d, own in enumerate(np.quantile(values, list(QUANTILES.values()), axis=0).T.tolist()):
            found.append((f"state {d}" if name == "state" else dimension_name(data, name, d), own))
    return found


def _rate(data: Demonstrations) -> float | None:
    """Steps per second that demonstrations declare, else those of their simulator, where it is known here."""
    from classact.run.presets import rate_of

    return rate_of(data)[0] if data.simulator in {"", *SIMULATORS} else data.schema.fps


def _time(steps: int, fps: float | None) -> str:
    return "steps per second are not known" if fps is None else f"{duration(steps / fps)} at {fps:g} steps per second"


def print_proposal(source: str, out: Path | None = None) -> None:
    """The arrays of data, what each is taken for, and a layout that says so; written to ``out`` where given."""
    from classact.cli.console import print_notes
    from classact.data.proposal import propose
    from classact.data.readers import listing
    from classact.errors import ConfigError
    from classact.utils.storage import json_text, write_json

    found = listing(source)
    if found is None:
        raise ConfigError(f"{source} takes no layout, so none can be proposed.")
    proposal = propose(found)
    shapes = {name: " x ".join("N" if n < 0 else f"{n:,}" for n in one.shape) for name, one in found.arrays.items()}
    lines = [(name, f"{shapes[name]} {one.dtype}: {proposal.roles[name]}") for name, one in found.arrays.items()]
    where = "" if found.episodes is None else f", of the first of {found.episodes}"
    print_facts(f"Arrays of {source}{where}", [(name, words.removesuffix(": ")) for name, words in lines])
    print_notes(proposal.remarks)
    if out is None:
        say(f"A layout to look at and to pass as --layout FILE.json:\n{json_text(proposal.layout)}")
    else:
        write_json(out, proposal.layout)
        say(f"Layout to look at, and to pass as --layout: {out}\n{json_text(proposal.layout)}")


def _attempts(header: dict[str, Any]) -> str:
    tried, reasons = header.get("attempts", "unknown"), header.get("not_kept", {})
    if isinstance(reasons, int):  # format 1 only counts
        return f"{tried}, {reasons} not kept"
    count = sum(reasons.values())
    often = sorted(reasons.items(), key=lambda item: -item[1])
    return f"{tried}, {count} not kept" + "".join(f"\n{number} x {reason}" for reason, number in often)


@dataclass(frozen=True)
class DataValidate:
    """Look for what is odd in demonstrations: a line for each finding; exit status 1 if there are problems.

    Attributes:
        source: Demonstrations.
        layout: JSON file that says which array of the data is what, or a name, as in umi (docs/data.md).
        episodes: Only the first so many demonstrations, or those of these numbers, as in 0:50,60.
        quiet: No progress bar.
    """

    source: str = flag(positional=True, choices=sources)
    layout: Path | None = None
    episodes: int | str | None = None
    quiet: bool = False

    def main(self) -> int:
        from classact.cli.console import print_findings
        from classact.data.readers import check_files, read_demonstrations
        from classact.data.validate import Finding, validate
        from classact.utils.progress import progress_bar

        try:
            data = read_demonstrations(self.source, episodes=self.episodes, layout=self.layout)
        except DataError as error:  # what cannot be read is a finding, too: NaN, missing and damaged files
            print_findings([Finding("problem", "reading", self.source, str(error))])
            say(f"{self.source}: cannot be read, 1 problem.")
            return 1
        with progress_bar("look at frames", quiet=self.quiet or not data.images) as bar:
            found = validate(data, lambda done, of: bar(done, of, "cameras"))
        try:
            found += check_files(self.source, self.episodes)
        except DataError as error:  # what a layout reads may be other than what is recorded beside it
            found.append(Finding("note", "files", self.source, str(error)))
        found.sort(key=lambda one: one.kind != "problem")
        print_findings(found)
        problems = sum(one.kind == "problem" for one in found)
        say(f"{data.name}: {len(data)} episodes, {problems} problems, {len(found) - problems} notes.")
        return 1 if problems else 0


@dataclass(frozen=True)
class DataConvert:
    """Write demonstrations as a LeRobot data set (v3.0), which LeRobot's own tools read.

    Attributes:
        source: Demonstrations.
        out: Folder to write, which must not exist.
        fps: Steps per second, where neither the data nor their simulator say.
        images: As videos (H.264), or exactly (png), which takes more space.
        layout: JSON file that says which array of the data is what, or a name, as in umi (docs/data.md).
        episodes: Only the first so many demonstrations, or those of these numbers, as in 0:50,60.
        quiet: No progress bar.
    """

    source: str = flag(positional=True, choices=sources)
    out: Path = flag()
    fps: float | None = None
    images: Literal["video", "png"] = "video"
    layout: Path | None = None
    episodes: int | str | None = None
    quiet: bool = False

    def main(self) -> None:
        from classact.data.lerobot_writer import write_lerobot
        from classact.data.readers import read_demonstrations
        from classact.utils.progress import progress_bar

        data = read_demonstrations(self.source, episodes=self.episodes, layout=self.layout)
        fps = _rate(data) if self.fps is None else self.fps
        with progress_bar("write episodes", quiet=self.quiet) as bar:
            out = write_lerobot(
                data, self.out, fps=fps, images=self.images, progress=lambda done, of: bar(done, of, "")
            )
        say(f"LeRobot data set: {out}")


@dataclass(frozen=True)
class DataPreview:
    """Write a contact sheet of demonstrations (.png), or the video of one (.mp4).

    Attributes:
        source: Demonstrations.
        out: File to write.
        episode: Of the video. Default: the first.
        layout: JSON file that says which array of the data is what, or a name, as in umi (docs/data.md).
    """

    source: str = flag(positional=True, choices=sources)
    out: Path = Path("preview.png")
    episode: int | None = None
    layout: Path | None = None

    def main(self) -> None:
        from classact.data.preview import write_preview
        from classact.data.readers import read_demonstrations
        from classact.utils.storage import check_writable

        check_writable(self.out)
        say(f"Preview: {write_preview(read_demonstrations(self.source, layout=self.layout), self.out, self.episode)}")


@dataclass(frozen=True)
class DataCache:
    """List what decoded images and other files lie in the cache (CLASSACT_CACHE), or clean it.

    Attributes:
        action: list, or clean: remove what one of the flags names; never what a running process uses.
        older_than: Days since it was used last.
        gone: What was made for data that are there no more.
        all: Everything.
        dry_run: Only say what would be removed.
    """

    action: str = flag("list", positional=True, choices=lambda: ("list", "clean"))
    older_than: float | None = None
    gone: bool = False
    all: bool = False
    dry_run: bool = False

    def main(self) -> None:
        from classact.cli.console import print_cache
        from classact.data.cache import cached, clean
        from classact.data.images import cache_folder
        from classact.errors import ConfigError, choose

        if self.action not in ("list", "clean"):
            raise ConfigError(choose("action", self.action, ("list", "clean")))
        if self.action == "list":
            if self.older_than is not None or self.gone or self.all or self.dry_run:
                raise ConfigError("these flags are of 'data cache clean'; list shows everything.")
            found = cached()
            print_cache([(one, "") for one in found])
            say(f"{cache_folder()}: {size(sum(one.nbytes for one in found))}.")
            return
        done = clean(older_than=self.older_than, gone=self.gone, everything=self.all, dry_run=self.dry_run)
        print_cache([(one.entry, one.kept or ("would be removed" if self.dry_run else "removed")) for one in done])
        freed = sum(one.entry.nbytes for one in done if not one.kept)
        say(f"{cache_folder()}: {size(freed)} {'would be freed' if self.dry_run else 'freed'}.")


def size(nbytes: int) -> str:
    """Such as "1,234 MiB"."""
    return f"{nbytes / 2**20:,.0f} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:,.0f} KiB"


@dataclass(frozen=True)
class DataGenerate:
    """Demonstrations of a simulated task by its scripted expert, from seeds; resumable.

    Attributes:
        task: Simulator by name.
        episodes: Successful episodes to keep; of libero-object, of each of its ten tasks.
        out: File to write, TASK.npz by default; with --shift the folder, TASK-SHIFT by default.
        shift: Store images as well, under this visual shift. Without it, states and actions only: images are drawn from
            them when they are needed, under any shift.
        image_size: Side of the stored images in pixels. Default: the simulator's.
        cameras: Views of the stored images. Default: the simulator's first.
        seed: Seed of the first initial state; with --shift also of the appearances.
        workers: Processes; 0: one per core. Changes no result.
    """

    task: str = flag(positional=True, choices=lambda: SIMULATORS)
    episodes: int = 50
    out: Path | None = None
    shift: str | None = flag(None, choices=lambda: SHIFTS)
    image_size: int | None = None
    cameras: tuple[str, ...] = ()
    seed: int = 0
    workers: int = 0

    def main(self) -> None:
        from classact.sims.experts.generate import generate_demonstrations
        from classact.utils.machine import cores
        from classact.utils.progress import progress_bar

        task, shift = self.task, self.shift
        default = f"{task}.npz" if shift is None else f"{task}-{shift.partition('(')[0].strip()}"
        out = self.out or Path(default)
        generate_demonstrations(
            task,
            episodes=self.episodes,
            seed=self.seed,
            workers=self.workers or cores(),
            out=out,
            shift=shift,
            image_size=self.image_size,
            cameras=self.cameras or None,
            stage=progress_bar,
        )
        say(f"Demonstrations: {out}")
