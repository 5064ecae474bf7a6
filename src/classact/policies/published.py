"""Saved policies under the names that others' libraries use, and on the Hugging Face hub."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from classact.models.encoders.image import ImageEncoder, encoder_facts
from classact.policies.base import PolicySpec
from classact.utils.hub import model_card, model_folder, push_saved
from classact.utils.storage import CARD, write_text


class Published(ABC):
    """A policy that can be saved: ``from_pretrained``, ``save_pretrained``, ``push_to_hub``."""

    @property
    @abstractmethod
    def spec(self) -> PolicySpec:
        """What callers need to know."""

    @property
    @abstractmethod
    def image_encoder(self) -> ImageEncoder | None:
        """The network that reads images; None where they are not read."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything needed to act as one folder, with checksums."""

    @staticmethod
    @abstractmethod
    def load(folder: str | Path, *, device: str = "cpu", **overrides: Any) -> Any:
        """Read a folder written by :meth:`save`."""

    def save_pretrained(self, folder: str | Path, *, card: str | None = None) -> None:
        """:meth:`save`, and the ``card``, by default a short one, as README.md beside it."""
        self.save(Path(folder))
        write_text(Path(folder) / CARD, policy_card(self, Path(folder).name) if card is None else card)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, revision: str | None = None, device: str = "cpu", **overrides: Any
    ) -> Self:
        """A policy from a folder or the hub: ``user/name``, ``user/name@revision``.

        Raises:
            CheckpointError: it cannot be downloaded, and as of :meth:`load`.
            ConfigError: as of :meth:`load`.
        """
        return cls.load(model_folder(source, revision), device=device, **overrides)

    def push_to_hub(self, name: str, *, private: bool | None = None, card: str | None = None) -> str:
        """Upload what :meth:`save_pretrained` writes as ``user/name``; returns its address.

        Raises:
            ConfigError: as of :func:`classact.utils.hub.push_folder`.
        """
        card = policy_card(self, name) if card is None else card
        return push_saved(lambda folder: self.save_pretrained(folder, card=card), name, private=private)


def policy_facts(policy: Published) -> dict[str, object]:
    """What a card says of any policy."""
    spec, encoder = policy.spec, policy.image_encoder
    schema = spec.schema
    return {
        "Policy": spec.name,
        "Actions per decision": f"{spec.chunk_length}, at {spec.speed:g} x the demonstrations' speed",
        "Executed before the next decision": spec.control.describe(),
        "Observations per decision": spec.history,
        "Instructions": None if schema is None or not schema.language else _embedded(schema.language, spec),
        "Proprioception": None if schema is None else [f"{key} ({size})" for key, size in schema.proprioception],
        **({} if encoder is None else encoder_facts(encoder)),
    }


def _embedded(size: int, spec: PolicySpec) -> str:
    return f"{size} numbers, embedded by {spec.language_source or 'what is not known'}"


def policy_usage(policy: Published, name: str) -> str:
    """Python that loads a policy and asks it for an action."""
    spec, schema = policy.spec, policy.spec.schema
    if schema is None:
        return f'import classact\n\npolicy = classact.load_policy("{name}")'
    images = ", ".join(f'"{camera}": frame' for camera in spec.cameras)
    values = ", ".join(f'"{key}": values' for key in schema.keys)
    given = [f"images={{{images}}},  # (H, W, 3) uint8 RGB", f"proprioception={{{values}}},  # numbers"]
    if schema.language:
        given.append(f"language=embedding,  # of the instruction: {_embedded(schema.language, spec)}")
    arguments = "\n".join(f"    {line}" for line in ("policy.spec.schema,", *given))
    return f"""import classact
from classact.data.types import Observation
from classact.policies import Runner

policy = classact.load_policy("{name}")
runner = Runner(policy)  # runner.reset() where an episode starts
observation = Observation.of(
{arguments}
)
action = runner.step(observation)  # (D,), at every control step"""


def policy_card(policy: Published, name: str) -> str:
    """The card of a policy by itself, to be loaded as ``name``."""
    about = "A policy learned from demonstrations: camera images and proprioception in, a chunk of actions out."
    return model_card(name.rpartition("/")[2], about, policy_facts(policy), policy_usage(policy, name))
