"""``classact export``: policies in the form that others load."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from classact.cli.console import say
from classact.cli.flags import flag
from classact.errors import ConfigError


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

        _check_private(self.push, self.private)
        out = export_hub(self.run, self.out, head=self.head, hub=self.push)
        say(f"Policy and card: {out}")
        _push(out, self.push, self.private)


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
        private: Where the name is new there: nobody else sees it.
    """

    run: Path = flag(positional=True)
    out: Path = flag(positional=True)
    head: str | None = None
    features: tuple[str, ...] = ()
    push: str | None = None
    private: bool = False

    def main(self) -> None:
        from classact.run.export import export_lerobot

        _check_private(self.push, self.private)
        named = dict(one.partition("=")[::2] for one in self.features)
        if wrong := [one for one in self.features if not all(one.partition("="))]:
            raise ConfigError(f"--features {wrong[0]}: expected KEY=FEATURE, as in top=observation.image.")
        out = export_lerobot(self.run, self.out, head=self.head, features=named, hub=self.push)
        say(f"LeRobot policy: {out}")
        _push(out, self.push, self.private)


def _check_private(push: str | None, private: bool) -> None:
    if private and push is None:
        raise ConfigError("--private says who sees what is uploaded, but nothing is: name it, --push user/name.")


def _push(out: Path, push: str | None, private: bool) -> None:
    from classact.utils.hub import push_folder

    if push is not None:
        say(f"On the hub: {push_folder(out, push, private=private or None)}")
