"""``classact export``: policies in the form that others load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from classact.cli.console import say
from classact.cli.flags import flag


@dataclass(frozen=True)
class ExportLerobot:
    """Write a run's policy as LeRobot's own commands load it, with the package lerobot_policy_classact.

    Attributes:
        run: Folder of a run with a policy.
        out: Folder to write, which must not exist.
        head: A head of the run, by the name of its folder in RUN/heads. Default: retrieval.
        features: Where LeRobot's observation names things otherwise: KEY=FEATURE, as in top=observation.image.
        push: Upload it to the hub under this name, as in user/name.
    """

    run: Path = flag(positional=True)
    out: Path = flag(positional=True)
    head: str | None = None
    features: tuple[str, ...] = ()
    push: str | None = None

    def main(self) -> None:
        from classact.errors import ConfigError
        from classact.run.export import export_lerobot, push_folder

        named = dict(one.partition("=")[::2] for one in self.features)
        if wrong := [one for one in self.features if "=" not in one]:
            raise ConfigError(f"--features {wrong[0]}: expected KEY=FEATURE, as in top=observation.image.")
        out = export_lerobot(self.run, self.out, head=self.head, features=named)
        say(f"LeRobot policy: {out}")
        if self.push is not None:
            say(f"On the hub: {push_folder(out, self.push)}")
