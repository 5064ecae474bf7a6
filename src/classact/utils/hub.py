"""Folders on the Hugging Face hub: names, local copies, uploads, and the card that goes with them."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from classact.errors import CheckpointError, ConfigError

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")


def hub_name(source: str | os.PathLike[str]) -> tuple[str, str | None] | None:
    """(name, revision or None) of ``user/name`` or ``user/name@revision``; None where it has another form, or it or
    "user" is a path here.
    """
    text = os.fspath(source)
    match = _NAME.fullmatch(text)
    if match is None or os.path.lexists(text) or os.path.lexists(match[1].split("/")[0]):
        return None
    return match[1], match[2]


def reason(problem: Exception) -> str:
    """The first line of an error of the hub, whose messages are pages, without a full stop."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0].rstrip(". ")


def model_folder(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The folder that a path, or the name of a model on the hub, stands for.

    Args:
        source: a path, ``user/name`` or ``user/name@revision``. Without a connection the hub's cache is used.
        revision: branch, tag or commit, instead of one in the name.

    Raises:
        CheckpointError: it can neither be downloaded nor is it in the cache.
        ConfigError: a revision of a path, or two different ones.
    """
    found = hub_name(source)
    if found is None:
        if revision is not None:
            raise ConfigError(f"revision {revision!r} of {os.fspath(source)}: only models of the hub have revisions.")
        return Path(source)
    name, named = found
    if revision is not None and named not in (None, revision):
        raise ConfigError(f"{os.fspath(source)} names revision {named!r}, but revision {revision!r} is asked for.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision or named))
    except Exception as problem:  # what carries the connection raises errors of its own
        raise CheckpointError(
            f"{os.fspath(source)} is no folder here, and can neither be downloaded as a model of the hub nor found in "
            f"its cache ({reason(problem)}). Check the name and the connection; for a private one log in with 'hf auth "
            f"login'."
        ) from None


def check_hub_name(name: str) -> None:
    """Refuse, as a ConfigError, what cannot be uploaded to: anything but ``user/name``."""
    match = _NAME.fullmatch(name)
    if match is None or match[2] is not None:
        raise ConfigError(f"{name!r} is no name on the hub: expected user/name.")


def push_folder(folder: Path, name: str, *, private: bool | None = None) -> str:
    """Upload a folder as a model of the hub, made where it is not there; returns its address.

    Args:
        folder: what to upload; files of the same names are replaced.
        name: ``user/name``.
        private: whether a new one is; None: as is usual for the user.

    Raises:
        ConfigError: not a name, no connection, no permission, or not logged in.
    """
    check_hub_name(name)
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=name, folder_path=folder))
    except Exception as problem:  # what carries the connection raises errors of its own
        raise ConfigError(
            f"{folder} could not be uploaded as {name} ({reason(problem)}). Check the connection, and log in with 'hf "
            f"auth login'."
        ) from None


def push_saved(save: Callable[[Path], None], name: str, *, private: bool | None = None) -> str:
    """Upload what ``save`` writes into a folder: :func:`push_folder`."""
    with tempfile.TemporaryDirectory() as place:
        save(Path(place) / "model")
        return push_folder(Path(place) / "model", name, private=private)


def model_card(
    title: str,
    about: str,
    facts: Mapping[str, object],
    usage: str,
    *,
    tags: Sequence[str] = (),
    dataset: str | None = None,
    results: Sequence[Any] = (),
    sections: Mapping[str, str] | None = None,
    library: str = "classact",
) -> str:
    """The text of a model card, whose license is left to whoever publishes it.

    Args:
        title, about: what it is.
        facts: rows of a table; what is None is left out.
        usage: Python that loads it.
        tags: beside those of every card.
        dataset: name on the hub of what it was trained on.
        results: huggingface_hub.EvalResult of its evaluations.
        sections: further headings and their text.
        library: that loads it.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        library_name=library,
        pipeline_tag="robotics",
        tags=["robotics", "imitation-learning", "classact", "arxiv:2508.01600", *tags],
        datasets=None if dataset is None else [dataset],
        model_name=title if results else None,
        eval_results=list(results) or None,
    )
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items() if value is not None]
    parts = [f"---\n{data.to_yaml()}\n---", f"# {title}", about, "\n".join(["| | |", "|---|---|", *rows])]
    parts += [f"## {heading}\n\n{text}" for heading, text in (sections or {}).items()]
    parts.append(f"## Use\n\n```python\n{usage.strip()}\n```")
    parts.append(
        "Made by classact (`pip install classact`); the method is CLASS, [arXiv 2508.01600]"
        "(https://arxiv.org/abs/2508.01600)."
    )
    return "\n\n".join(parts) + "\n"


def _cell(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return re.sub(r"\s+", " ", text.replace("|", r"\|"))
