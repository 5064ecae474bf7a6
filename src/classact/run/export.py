"""Policies of a run in the form that others load."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from classact.data.schema import Schema
from classact.errors import CheckpointError, ConfigError
from classact.policies.monitored import MonitoredPolicy
from classact.policies.parametric import ParametricPolicy
from classact.run.card import run_card
from classact.run.folder import Run
from classact.run.load import load_policy, trained_head
from classact.utils.hub import check_hub_name
from classact.utils.storage import CARD, atomic_path, write_json

Part = Literal["encoder", "policy"]

TYPE = "classact"
"""Of LeRobot's policy; the package lerobot_policy_classact registers it."""

USAGE = """
# pip install classact lerobot_policy_classact
from lerobot_policy_classact.modeling_classact import ClassactPolicy

policy = ClassactPolicy.from_pretrained("{name}")
# or: {command} --policy.path={name} {words}
"""

FEATURES = {"pusht": {"top": "observation.image", "agent_pos": "observation.state"}}
"""Simulator -> camera or proprioception key -> the feature that LeRobot's environment of it has."""


def export_hub(run: Run | str | Path, out: Path, *, head: str | None = None, hub: str | None = None) -> Path:
    """Write a policy as ``classact.load_policy`` loads it from the hub, with a card and the run's page.

    Args:
        run: a folder with a policy.
        out: folder to write, which must not exist.
        head: of the run's heads; None: retrieval, whose encoder ``ImageEncoder.from_pretrained`` loads as well.
        hub: the name that it will have there, for its card; None: the folder's.

    Raises:
        CheckpointError: no policy there, or a damaged one.
        ConfigError: the folder exists.
    """
    run = _exported(run, out, head, hub)
    with atomic_path(out, replace=False) as temporary:
        acting = _as_evaluated(run, head)
        acting.save(temporary)
        card = run_card(run, acting, hub or out.name, head=head, page=_add_page(run, temporary))
        (temporary / CARD).write_text(card, encoding="utf-8")
    return out


def export_policy_onnx(run: Run | str | Path, out: Path, *, head: str | None = None, part: Part = "encoder") -> Path:
    """Write a policy of a run, or its encoder, as an ONNX file: :mod:`classact.policies.onnx_graphs`.

    Args:
        run: a folder with a policy.
        out: file to write, which must not exist.
        head: of the run's heads; None: retrieval.
        part: "encoder": images to features; "policy": observations to actions.

    Raises:
        CheckpointError: no policy there, or a damaged one.
        ConfigError: the file exists, or a graph cannot compute what the policy does.
        MissingDependencyError: the extra ``onnx`` is not installed.
    """
    from classact.policies.onnx_graphs import export_onnx

    run = _exported(run, out, head)
    acting = _as_evaluated(run, head)
    if part == "policy":
        return export_onnx(acting, out)
    encoder = acting.image_encoder
    if encoder is None or not encoder.config.cameras:
        raise ConfigError(
            f"the policy of {run.root} sees no cameras: it has no encoder. Export it whole (part policy)."
        )
    return export_onnx(encoder, out)


def _exported(run: Run | str | Path, out: Path, head: str | None, hub: str | None = None) -> Run:
    """The run, whose policy is to be written to ``out``."""
    if hub is not None:
        check_hub_name(hub)
    run = run if isinstance(run, Run) else Run(Path(run))
    if out.exists():
        raise ConfigError(f"{out} exists. Choose another folder, or remove it.")
    if head is not None:
        trained_head(run, head)
    elif not run.policy.is_dir():
        raise CheckpointError(f"{run.root} has no policy yet: run 'classact pretrain' with this --out first.")
    return run


def _as_evaluated(run: Run, head: str | None) -> Any:
    """A policy of the run as it is evaluated: a head with what monitors it."""
    return load_policy(run if head is None else run.head(head))


def _add_page(run: Run, folder: Path) -> str | None:
    """Copy the run's page into a folder; its name there, None where there is no page."""
    if not run.report.is_file():
        return None
    shutil.copy(run.report, folder)
    return run.report.name


def export_lerobot(
    run: Run | str | Path,
    out: Path,
    *,
    head: str | None = None,
    features: dict[str, str] | None = None,
    hub: str | None = None,
) -> Path:
    """Write a policy as LeRobot's commands load it with the package lerobot_policy_classact.

    Args:
        run: a folder with a policy.
        out: folder to write, which must not exist.
        head: of the run's heads; None: retrieval.
        features: camera or proprioception key -> feature of LeRobot's observation, where it is not
            ``observation.images.CAMERA``, and ``observation.state`` for the only key, or ``observation.KEY``.
        hub: the name that it will have there, for its card; None: the folder's.

    Raises:
        CheckpointError: no policy there, or a damaged one.
        ConfigError: the folder exists, or a name in ``features`` is none of the policy's.
    """
    run = _exported(run, out, head, hub)
    named = FEATURES.get(run.settings().frames.simulator, {}) | (features or {})
    with atomic_path(out, replace=False) as temporary:
        temporary.mkdir()
        with TemporaryDirectory() as place:
            policy = Path(place) / "policy"
            _as_evaluated(run, head).save(policy)
            acting = write_lerobot_policy(policy, temporary, named, asked=tuple(features or {}))
        name = hub or out.name
        usage = _usage(name, run.settings().frames.simulator, acting.spec.schema)
        card = run_card(run, acting, name, head=head, usage=usage, page=_add_page(run, temporary), library="lerobot")
        (temporary / CARD).write_text(card, encoding="utf-8")
    return out


def _usage(name: str, simulator: str, schema: Schema) -> str:
    """How LeRobot runs it: in its own environment of the simulator, else on a robot, as often a second as recorded."""
    if simulator in FEATURES:
        return USAGE.format(name=name, command="lerobot-eval", words=f"--env.type={simulator}")
    words = ["--robot.type=...", *([] if schema.fps is None else [f"--fps={schema.fps:g}"])]
    words += ['--task="..."'] * bool(schema.language)
    return USAGE.format(name=name, command="lerobot-rollout", words=" ".join(words))


def write_lerobot_policy(
    policy: Path, folder: Path, features: Mapping[str, str] | None = None, *, asked: Sequence[str] = ()
) -> Any:
    """Write a saved policy, of a run or not, into a folder as LeRobot loads it, without a card; returns the policy.

    Args:
        policy: its folder.
        folder: exists.
        features: as of :func:`export_lerobot`; of what the policy does not observe they are passed over.
        asked: names of ``features`` that must be the policy's.

    Raises:
        CheckpointError: a damaged policy.
        ConfigError: a policy of true states, or a name in ``asked`` is none of the policy's.
    """
    from safetensors.numpy import save_file

    acting: Any = load_policy(policy)
    spec, named = acting.spec, features or {}
    schema = spec.schema
    if schema is None or not spec.cameras:
        raise ConfigError(f"{policy} sees no cameras: a policy of true states has no place in LeRobot.")
    seen = [*spec.cameras, *schema.keys]
    if unknown := sorted(set(asked) - set(seen)):
        raise ConfigError(f"{unknown[0]!r} is none of {seen}, what the policy observes.")
    cameras = {camera: named.get(camera, f"observation.images.{camera}") for camera in spec.cameras}
    alone = len(schema.keys) == 1
    keys = {key: named.get(key, "observation.state" if alone else f"observation.{key}") for key in schema.keys}
    names = [*cameras.values(), *keys.values()]
    if twice := [name for name in names if names.count(name) > 1]:
        both = [key for key, name in (cameras | keys).items() if name == twice[0]]
        raise ConfigError(f"{' and '.join(map(repr, both))} would both be {twice[0]!r}. Name each feature once.")
    files = {path.relative_to(policy).as_posix(): path for path in sorted(policy.rglob("*")) if path.is_file()}
    content = {name: np.frombuffer(path.read_bytes(), np.uint8) for name, path in files.items()}
    sizes = dict(schema.proprioception)
    size = _action_dim(acting)
    assert acting.image_encoder is not None  # it sees cameras
    side = acting.image_encoder.config.image_size
    config: dict[str, Any] = {
        "type": TYPE,
        "n_obs_steps": spec.history,
        "input_features": {
            **{name: {"type": "VISUAL", "shape": [3, side, side]} for name in cameras.values()},
            **{name: {"type": "STATE", "shape": [sizes[key]]} for key, name in keys.items()},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [size]}},
        "device": "cpu",
        "push_to_hub": False,
        "files": {name: len(array) for name, array in content.items()},
        "cameras": cameras,
        "proprioception": keys,
        "n_action_steps": spec.control.execute or spec.chunk_length,
        "normalization_mapping": dict.fromkeys(("VISUAL", "STATE", "ACTION", "ENV"), "IDENTITY"),
    }
    write_json(folder / "config.json", config)
    arrays = {f"file_{number}": array for number, array in enumerate(content.values())}
    save_file({**arrays, "unused": np.zeros(1, np.float32)}, folder / "model.safetensors", {"format": "pt"})
    for name, steps in _processors(config).items():
        write_json(folder / f"policy_{name}.json", {"name": f"policy_{name}", "steps": steps})
    return acting


def _action_dim(acting: Any) -> int:
    if isinstance(acting, MonitoredPolicy):
        return _action_dim(acting.policy)
    if isinstance(acting, ParametricPolicy):
        return len((acting.actions if acting.decoder is None else acting.decoder.actions).low)
    return int(acting.actions.shape[1])


def _processors(config: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Steps of LeRobot's two pipelines, whose normalisation is the identity."""
    device = {"device": config["device"], "float_dtype": None}
    shared = {"eps": 1e-8, "norm_map": config["normalization_mapping"]}
    into = {"features": {**config["input_features"], **config["output_features"]}, **shared}
    return {
        "preprocessor": [
            {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
            {"registry_name": "to_batch_processor", "config": {}},
            {"registry_name": "device_processor", "config": device},
            {"registry_name": "normalizer_processor", "config": into},
        ],
        "postprocessor": [
            {"registry_name": "unnormalizer_processor", "config": {"features": config["output_features"], **shared}},
            {"registry_name": "device_processor", "config": device},
        ],
    }
