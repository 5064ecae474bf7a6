"""``classact export``: policies in the form that others load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from classact.cli.console import say
from classact.cli.flags import flag


@dataclass(frozen=True)
class ExportHub:
    """Write a run's policy with a model card as 'classact.load_policy' loads it, from a folder or from the hub.

    Attributes:
        run: Folder of a run with a policy.
        out: Folder to write, which must not exist.
        head: A head of the run, by the name of its folder in RUN/heads. Default: retrieval.
        push: Upload it to the hub under this name, as in user/name. The license is for you to choose: in README.md.
        private: Where the name is new there: nobody else sees it.
    """

    run: Path = flag(positional=True)
    out: Path = flag(positional=True)
    head: str | None = None
    push: str | None = None
    private: bool = False

    def main(self) -> None:
        from classact.run.export import export_hub
        from classact.utils.hub import push_folder

        out = export_hub(self.run, self.out, head=self.head, hub=self.push)
        say(f"Policy and card: {out}")
        if self.push is not None:
            say(f"On the hub: {push_folder(out, self.push, private=self.private or None)}")


@dataclass(frozen=True)
class ExportOnnx:
    """Write a run's encoder, or its whole policy, as an ONNX file, for runtimes without Python or torch.

    Attributes:
        run: Folder of a run with a policy.
        out: File to write, which must not exist.
        head: A head of the run, by the name of its folder in RUN/heads. Default: retrieval.
        part: encoder: resized images to features. policy: observations to actions, of retrieval or a head 'mlp'.
    """

    run: Path = flag(positional=True)
    out: Path = flag(positional=True)
    head: str | None = None
    part: Literal["encoder", "policy"] = "encoder"

    def main(self) -> None:
        from classact.run.export import export_policy_onnx

        say(f"ONNX: {export_policy_onnx(self.run, self.out, head=self.head, part=self.part)}")


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
        from classact.run.export import export_lerobot
        from classact.utils.hub import push_folder

        named = dict(one.partition("=")[::2] for one in self.features)
        if wrong := [one for one in self.features if "=" not in one]:
            raise ConfigError(f"--features {wrong[0]}: expected KEY=FEATURE, as in top=observation.image.")
        out = export_lerobot(self.run, self.out, head=self.head, features=named, hub=self.push)
        say(f"LeRobot policy: {out}")
        if self.push is not None:
            say(f"On the hub: {push_folder(out, self.push)}")
