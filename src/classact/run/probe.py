"""Probing a run: its encoder, its data, its own settings; one JSON file."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from classact.data.copies import describe_copies, first_copies
from classact.data.readers import last_episodes
from classact.data.types import Demonstrations
from classact.errors import CheckpointError, ConfigError, UnknownNameError, choose
from classact.evaluation.probe.latents import Encoded, ProbeConfig, Progress, choose_queries, probe_latents
from classact.evaluation.probe.views import Drawing, probe_views, reason_against, representations
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.policies import ImageLatents, RetrievalPolicy, SceneLatents, StateLatents
from classact.policies.novelty import LEFT_OUT
from classact.policies.retrieval import check_heldout
from classact.run.config import RunConfig
from classact.run.data import STATE_RETRIEVAL, RunData, folder_digest, state_latents
from classact.run.folder import Run
from classact.similarity import SimilarityConfig
from classact.sims import simulator_spec
from classact.sims.shifts import parse_shift
from classact.utils.codec import first_difference, to_json, without
from classact.utils.machine import choose_device, hardware, versions
from classact.utils.progress import progress_bar
from classact.utils.storage import read_json, write_json

logger = logging.getLogger(__name__)

ENCODERS = ("learned", "untrained", "state")


def probe_file(run: Run, encoder: str = "learned") -> Path:
    """RUN/probe.json, or RUN/probe-ENCODER.json of another encoder than the learned one."""
    return run.root / ("probe.json" if encoder == "learned" else f"probe-{encoder}.json")


@dataclass(frozen=True)
class _Probed:
    """What is probed: latents, those of the bank, and the retrieval settings."""

    latents: Any
    bank: Any
    heldout: Any
    temperature: float
    min_actions: int


def probe_run(
    run: Run,
    *,
    encoder: str = "learned",
    queries: int = ProbeConfig.queries,
    pairs: int = ProbeConfig.pairs,
    seed: int = 0,
    shift: str | None = None,
    similarity: SimilarityConfig | None = None,
    k: int | None = None,
    temperature: float | None = None,
    device: str = "auto",
    quiet: bool = True,
) -> dict[str, Any]:
    """Metrics of a run's representation, without rollouts; nothing is written.

    Args:
        run: a folder with a policy, whose data can still be read.
        encoder: "learned": the run's; "untrained": its architecture with random weights; "state": the simulator's true
            state.
        queries, pairs, seed: see :class:`ProbeConfig`.
        shift: under which states are drawn twice; None: that of the run's images.
        similarity: action distance and K; None: the run's. Runs trained with different ones are compared under one.
        k: probed besides the numbers of neighbours in :class:`ProbeConfig`, such as what the run acts with.
        temperature: of the softmax over neighbours' cosines; None: the policy's.

    Returns:
        What :func:`probe_latents` returns, with "views" (:func:`probe_views`, or why it was skipped), "run", "encoder",
        "notes", "hardware", "versions", "created".

    Raises:
        DataError: not a run's folder, or unreadable data.
        CheckpointError: no policy there, or a damaged one.
        ConfigError: an unknown encoder or shift, or data that have changed.
    """
    if encoder not in ENCODERS:
        raise UnknownNameError(choose("encoder to probe", encoder, ENCODERS))
    if shift is not None:
        parse_shift(shift)
    begin = time.perf_counter()
    settings = run.settings()
    if not run.policy.is_dir():
        raise CheckpointError(f"{run.root} has no policy yet: run 'classact pretrain' with this --out first.")
    policy = RetrievalPolicy.load(run.policy, device=choose_device(device))
    assert isinstance(policy.latents, ImageLatents), "a run's own policy compares images"
    data = RunData(settings, policy.latents.encoder.config, quiet=quiet)
    data.check_unchanged(run)
    training = data.states()
    if len(policy.bank) != training.num_steps:
        raise ConfigError(
            f"the bank of {run.policy} holds {len(policy.bank)} timesteps, the data that the run was started with have "
            f"{training.num_steps} to learn from. Bring the data back that it was built from, or start another run."
        )
    known = data.recorded.carries_actions()
    compared = known[len(training) :] if training.labelled is None else known  # decoded ones will do for the bank
    if not compared.all():
        raise ConfigError(
            f"{training.name} ({training.source}): a probe compares what was done in all demonstrations, and "
            f"{(~known).sum()} of {len(known)} carry no actions. Probe a run of those that do (--episodes)."
        )
    if copies := describe_copies(first_copies(training.actions, training.episode_ends), training.name):
        logger.warning("probe: %s", copies)
    if data.held:
        check_heldout(training.actions, training.episode_ends, last_episodes(data.recorded, data.held), len(training))
    probed = _encode(encoder, policy, data, settings)
    config = ProbeConfig(
        ks=tuple(sorted({*ProbeConfig.ks, *(() if k is None else (k,))})),
        temperature=probed.temperature if temperature is None else temperature,
        min_actions=probed.min_actions,
        similarity=similarity or settings.pretrain.similarity,
        queries=queries,
        pairs=pairs,
        seed=seed,
    )
    heldout = data.recorded if data.held else None
    bank = Encoded(representations(probed.latents, probed.bank), training.actions, training.episode_ends)
    asked = None
    if heldout is not None:
        first = training.num_steps
        ends = heldout.episode_ends[len(training) :] - first
        asked = Encoded(representations(probed.latents, probed.heldout), heldout.actions[first:], ends)
    space = training.schema.actions
    with progress_bar("probe", quiet=quiet) as bar:
        on = str(policy.device)
        result = probe_latents(bank, asked, config=config, action_space=space, device=on, progress=bar)
        views = _views(data, probed, config, settings, shift, bar)
    return {
        "run": str(run.root),
        "encoder": encoder,
        "policy": folder_digest(run.policy),
        "data": {"name": training.name, "source": training.source, "fingerprint": data.recorded.fingerprint()},
        "notes": _notes(encoder == "learned" and settings.pretrain.objective.written != "none", result),
        **to_json(result),
        "views": views,
        "device": str(policy.device),
        "hardware": hardware(),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - begin, 2),
    }


def write_probe(run: Run, result: Mapping[str, Any], path: Path | None = None) -> Path:
    """Write a result of :func:`probe_run`, by default into the run's folder; returns the file."""
    file = path or probe_file(run, str(result["encoder"]))
    write_json(file, result)
    return file


def question(probe: Mapping[str, Any]) -> dict[str, Any]:
    """What a probe asked, and of which policy (None in files of before they said so)."""
    asked = {"encoder": probe["encoder"], "policy": probe.get("policy"), "data": probe["data"]["fingerprint"]}
    return {**asked, "shift": probe["views"]["shift"], "settings": probe["settings"]}


def other_question(run: Run, **options: Any) -> str | None:
    """What RUN/probe.json was asked instead of what :func:`probe_run` with ``options`` would ask of the run's policy
    now; None where it answers that.
    """
    settings = run.settings()
    acting: dict[str, Any] = {
        "temperature": settings.retrieval.temperature,
        "min_actions": settings.retrieval.min_actions,
    }
    asked = {"encoder": "learned", "policy": folder_digest(run.policy), "shift": settings.frames.shift}
    asked |= {"data": run.read_config()["data"]["fingerprint"], "settings": to_json(ProbeConfig(**acting, **options))}
    return first_difference(question(read_json(probe_file(run))), asked, "")


def compared(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Of a :func:`question` what probes must share whose metrics are compared: not which encoder is asked, nor how each
    policy retrieves.
    """
    return without(
        dict(asked), "encoder", "policy", *(f"settings.{name}" for name in ("ks", "temperature", "min_actions"))
    )


def flat_metrics(result: Mapping[str, Any], representation: str = "latents") -> dict[str, dict[str, float | None]]:
    """Metric name -> value, low and high of one representation, for tables over many runs; without anchors."""
    probed = result["representations"]
    if representation not in probed:
        raise UnknownNameError(choose("representation", representation, probed))
    out: dict[str, dict[str, float | None]] = {}
    for row in probed[representation]["action_error"]:
        out |= {f"{name}_error@{row['k']}": row[name] for name in ("dtw", "l2")}
    views = result.get("views", {}).get("representations", {}).get(representation, {})
    rest = {**probed[representation], **views}
    return out | {key: metric for key, metric in rest.items() if isinstance(metric, dict) and "chance" not in key}


def _encode(encoder: str, policy: RetrievalPolicy, data: RunData, settings: RunConfig) -> _Probed:
    """An encoder's latents of the bank's and of the held-out steps; images are made only where needed."""
    latents: ImageLatents | StateLatents | SceneLatents
    if encoder == "state":
        latents = _state_latents(data.states(), settings.frames.simulator)
        parts = np.split(latents.demonstrations(data.recorded), [data.states().num_steps])
        # The run's own bank, so that encoders are compared on the same one.
        return _Probed(latents, parts[0], parts[1], STATE_RETRIEVAL.temperature, policy.config.min_actions)
    assert isinstance(policy.latents, ImageLatents)
    latents, config, bank = policy.latents, policy.config, policy.bank
    if encoder == "untrained":
        plain: EncoderConfig = replace(latents.encoder.config, init="scratch", init_path=None)
        untrained = ImageEncoder(plain, seed=settings.pretrain.seed).to(policy.device)
        latents = ImageLatents(untrained, latents.lowdim, bf16=latents.bf16)
        bank = latents.demonstrations(data.frames())
    frames = data.heldout()
    heldout = None if frames is None else latents.demonstrations(frames)
    return _Probed(latents, bank, heldout, config.temperature, config.min_actions)


def _state_latents(data: Demonstrations, simulator: str) -> StateLatents | SceneLatents:
    spec = simulator_spec(simulator)
    if not spec.objects and (spec.world is None or data.states is None):
        missing = "simulator states" if data.states is None else "objects, nor an extent of its simulator's world"
        raise ConfigError(f"{data.name} ({data.source}) has no {missing}: encoder 'state' cannot be probed.")
    return state_latents(data, spec)


def _views(
    data: RunData,
    probed: _Probed,
    config: ProbeConfig,
    settings: RunConfig,
    shift: str | None,
    progress: Progress,
) -> dict[str, Any]:
    everything, training = data.recorded, data.states()
    frames = settings.frames
    shown = shift or frames.shift
    drawing = Drawing(frames.simulator, shown, frames.render_size)
    if reason := reason_against(everything, probed.latents, drawing):
        return {"skipped": reason, "shift": shown}
    if data.held:
        candidates = np.arange(training.num_steps, everything.num_steps)
    else:
        asked = choose_queries(training.episode_ends, None, config)
        candidates = np.flatnonzero(np.isin(training.episode_index(), asked.episodes))
    # States of copies cannot be told apart.
    original = first_copies(everything.actions, everything.episode_ends) == np.arange(len(everything))
    some = candidates[original[everything.episode_index()[candidates]]]
    candidates = some if len(some) else candidates
    return to_json(probe_views(everything, candidates, probed.latents, config, drawing, progress))


def _notes(seen: bool, result: Mapping[str, Any]) -> list[str]:
    notes = []
    queries = result["queries"]
    if queries["kind"] == LEFT_OUT:
        also = ", and the encoder has seen them" if seen else ""
        notes.append(
            f"The run held no demonstrations out: {queries['episodes']} of those it learned from are each left out of "
            f"the bank in turn{also}."
        )
    if queries["episodes"] < 10:
        notes.append(
            f"Intervals come from {queries['episodes']} episodes, which are few: they are too narrow rather than too "
            f"wide."
        )
    return notes
