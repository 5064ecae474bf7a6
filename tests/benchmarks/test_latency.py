from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import latency
from classact.errors import ConfigError
from classact.models.encoders import EncoderConfig
from classact.models.heads import DiffusionConfig, MLPConfig, UNetConfig
from classact.policies import RetrievalConfig, RetrievalPolicy, StateLatents
from classact.policies.parametric import ParametricConfig
from classact.run.folder import Run
from classact.train.engine import use_bfloat16
from classact.utils.storage import read_json, write_json
from common import command
from latency import Case, LatencyConfig, Watch, parametric_policy, retrieval_policy, run

TINY = Case("tiny", EncoderConfig(width=0.25, image_size=24, crop_size=20), 2, "debug", (200, 300))
UNET = UNetConfig((8, 16))
QUICK = LatencyConfig("cpu", calls=2, compiled=False)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "CASES", (TINY,))
    monkeypatch.setattr(latency, "BANKS", (50, 300))
    monkeypatch.setattr(latency, "DIMENSIONS", (8,))
    monkeypatch.setattr(latency, "BATCHES", (1, 3))


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self, spans: Iterator[float]) -> None:
        self.now, self.spans, self.calls = 0.0, spans, 0

    def __call__(self) -> float:
        return self.now

    def work(self) -> None:
        self.now += next(self.spans)
        self.calls += 1


def monitored(monkeypatch: pytest.MonkeyPatch, spans: list[float], **options: Any) -> tuple[Clock, dict[str, Any]]:
    clock = Clock(iter(spans))
    monkeypatch.setattr(latency.time, "perf_counter", clock)
    return clock, Watch(replace(QUICK, **options).setting).measure(clock.work, name="x")


def test_percentiles_are_of_the_calls_after_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = np.random.default_rng(0).uniform(0.001, 0.002, 40).tolist()
    clock, row = monitored(monkeypatch, [*[0.5] * latency.WARM_UP, *spans], calls=40)
    assert clock.calls == latency.WARM_UP + 40
    assert (row["name"], row["calls"]) == ("x", 40)
    assert_allclose((row["p50_ms"], row["p95_ms"]), 1e3 * np.percentile(spans, (50, 95)))


def test_slow_calls_are_fewer_but_never_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, row = monitored(monkeypatch, [1.0] * 100, calls=100, seconds=10.0)
    assert (clock.calls, row["calls"]) == (3 + 10, 10)  # warm-up ends after a quarter of the time
    clock, row = monitored(monkeypatch, [30.0] * 100, calls=100, seconds=10.0)
    assert (clock.calls, row["calls"]) == (1 + latency.FEWEST, latency.FEWEST)
    clock, row = monitored(monkeypatch, [30.0] * 100, calls=2, seconds=10.0)
    assert row["calls"] == 2


def test_a_thousand_calls_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LatencyConfig("cpu").setting["calls"] == 100
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert LatencyConfig().setting == {"device": "cuda", "calls": 1000, "seconds": 60.0, "compiled": True}
    assert LatencyConfig("cuda", calls=7).setting["calls"] == 7


def test_every_section_has_its_rows() -> None:
    found = run((), QUICK, say=lambda _: None)
    assert tuple(found) == latency.SECTIONS
    labels = {name: [(r["name"], r["stage"], r["batch"]) for r in section["rows"]] for name, section in found.items()}
    precisions = ("float32", "bfloat16") if use_bfloat16("auto", torch.device("cpu")) else ("float32",)
    assert labels["encode"] == [("small at 20", precision, b) for precision in precisions for b in (1, 3)]
    assert labels["search"] == [(f"{n} x 8", f"k = {k}", b) for n, k in ((50, 50), (300, 64)) for b in (1, 3)]
    for section, heads in (("denoise", ("diffusion",)), ("mlp", ("mlp", "flow"))):
        assert [label[1:] for label in labels[section]] == [("eager", 1), ("eager", 3)] * len(heads)
        assert [label[0].partition(",")[0] for label in labels[section]] == [head for head in heads for _ in range(2)]
        assert all(label[0].endswith(" M parameters") for label in labels[section])
    assert labels["act"] == [
        (name, stage, batch)
        for name, stages in (
            ("retrieval, tiny, 200 timesteps", ("encode", "search", "average", "whole")),
            ("retrieval, tiny, 300 timesteps", ("encode", "search", "average", "whole")),
            ("mlp, tiny", ("encode", "sample", "whole")),
            ("flow, tiny", ("encode", "sample", "whole")),
            ("diffusion, tiny", ("encode", "sample", "whole")),
        )
        for batch in (1, 3)
        for stage in stages
    ]
    for section in found.values():
        assert all(r["calls"] == 2 and 0 < r["p50_ms"] <= r["p95_ms"] for r in section["rows"])
        assert section["hardware"]["cores"] >= 1
        assert {"torch", "classact"} <= section["versions"].keys()
        assert section["notes"] == []


def test_the_papers_figures_stand_beside_policies_of_its_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "CASES", (replace(TINY, banks=(50,)), replace(TINY, name="paper", banks=(50,))))
    found = run(("act",), replace(QUICK, calls=1), say=lambda _: None)["act"]
    beside = {(r["name"], r["stage"], r["batch"]): r["paper_ms"] for r in found["rows"] if "paper_ms" in r}
    assert beside == {
        ("retrieval, paper, 50 timesteps", "whole", 1): 5.5,
        ("mlp, paper", "whole", 1): 7.3,
        ("diffusion, paper", "whole", 1): 84.4,
    }
    monkeypatch.setenv("COLUMNS", "200")
    latency.print_latency("act", found)
    printed = capsys.readouterr().out
    assert "tasks, A40" in printed
    assert "84.4" in printed


def test_a_results_file_is_continued(tmp_path: Path) -> None:
    path, said = tmp_path / "latency.json", list[str]()
    run(("search",), QUICK, path=path, say=said.append)
    first = path.read_text(encoding="utf-8")
    run(("search", "mlp"), QUICK, path=path, say=said.append)
    held = read_json(path)
    assert set(held) == {"search", "mlp"}
    assert held["search"] == json.loads(first)["search"]
    assert said == ["search ...", f"search: kept from {path}", "mlp ..."]
    with pytest.raises(
        ConfigError, match=r"holds the section 'search', measured with setting.calls = 2, now it is 3.*--again"
    ):
        run(("search",), replace(QUICK, calls=3), path=path, say=said.append)
    again = run(("search",), replace(QUICK, calls=3), path=path, again=True, say=said.append)
    assert again["search"]["rows"][0]["calls"] == 3
    assert set(read_json(path)) == {"search", "mlp"}


def test_compiled_networks_are_measured_or_it_is_said_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    found = run(("mlp",), replace(QUICK, compiled=True), say=lambda _: None)["mlp"]
    assert [r["stage"] for r in found["rows"]] == ["eager", "compiled"] * 4

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    found = run(("mlp",), replace(QUICK, compiled=True), say=lambda _: None)["mlp"]
    assert [r["stage"] for r in found["rows"]] == ["eager"] * 4
    why = "not compiled: RuntimeError: no compiler"
    assert found["notes"] == [f"{head}, batch {b}: {why}" for head in ("mlp", "flow") for b in (1, 3)]


# A run's policies


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    root = tmp_path / "secret" / "pusht"
    retrieval_policy(TINY, 300).save(Run(root).policy)
    parametric_policy(TINY, MLPConfig(UNET)).save(root / "heads" / "mlp-frozen" / "policy")
    parametric_policy(TINY, DiffusionConfig(UNET)).save(root / "heads" / "dp" / "policy")
    return root


def test_the_policies_of_a_run(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = run((), replace(QUICK, run=trained), say=lambda _: None)
    assert not caplog.records  # an untrained head's actions are out of range, which its policy warns of elsewhere
    assert list(found) == ["run"]
    whole = [(r["name"], r["batch"]) for r in found["run"]["rows"] if r["stage"] == "whole"]
    assert whole == [(name, b) for name in ("retrieval, 300 timesteps", "dp", "mlp-frozen") for b in (1, 3)]
    assert not any("paper_ms" in r for r in found["run"]["rows"])  # of other sizes
    assert found["run"]["setting"]["run"] == "pusht"
    assert "secret" not in json.dumps(found)


def test_other_policies_of_a_run_are_another_setting(trained: Path, tmp_path: Path) -> None:
    path, config = tmp_path / "out.json", replace(QUICK, calls=1, run=trained)
    run((), config, path=path, say=lambda _: None)
    said: list[str] = []
    run((), config, path=path, say=said.append)
    assert said == [f"run: kept from {path}"]
    digest = latency.policies_digest(trained)
    (trained / "heads" / "dp").rename(trained / "heads" / "other")
    assert latency.policies_digest(trained) != digest
    (trained / "heads" / "other").rename(trained / "heads" / "dp")
    assert latency.policies_digest(trained) == digest
    retrieval_policy(TINY, 200).save(Run(trained).root / "new")
    shutil.rmtree(Run(trained).policy)
    (Run(trained).root / "new").rename(Run(trained).policy)
    with pytest.raises(ConfigError, match=rf"measured with setting.policies = '{digest}', now it is"):
        run((), config, path=path, say=lambda _: None)


def test_one_head_as_a_run(trained: Path) -> None:
    found = run((), replace(QUICK, run=trained / "heads" / "dp"), say=lambda _: None)["run"]
    assert {r["name"] for r in found["rows"]} == {"policy"}


def test_policies_of_states_and_of_histories() -> None:
    latents = StateLatents(256.0, 256.0, (4,))
    bank = latents._embed(np.random.default_rng(0).uniform(0, 512, (40, 5)))
    actions = np.zeros((40, 2), np.float32)
    policy = RetrievalPolicy(latents, bank, actions, np.array([40], np.int64), RetrievalConfig(k=3))
    watch = Watch(QUICK.setting)
    latency.measure_policy(watch, policy, "state", (2,))
    assert [r["stage"] for r in watch.rows] == ["encode", "search", "average", "whole"]

    single = parametric_policy(TINY, MLPConfig(UNET))
    head = latency.make_head(MLPConfig(UNET), 2 * single.head.feature_dim, latency.ACTIONS, latency.HORIZON)
    two = replace(single, head=head, config=ParametricConfig(history=2))
    watch = Watch(QUICK.setting)
    latency.measure_policy(watch, two, "history", (2,))
    assert [r["stage"] for r in watch.rows] == ["encode", "sample", "whole"]


# Bad input


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown section 'decode': available are 'act', 'denoise', 'encode', 'mlp', 'run'"
    ):
        run(("decode",), QUICK)
    with pytest.raises(ConfigError, match=r"section 'run' measures the policies of a run: name its folder with --run"):
        run(("run",), QUICK)
    with pytest.raises(ConfigError, match=r"expected a run's folder with policy/ or heads/NAME/policy/, found neither"):
        run((), replace(QUICK, run=tmp_path))
    with pytest.raises(ConfigError, match=r"calls >= 1 and seconds > 0, got 0 and 60.0"):
        replace(QUICK, calls=0)
    with pytest.raises(ConfigError, match=r"got 2 and 0"):
        replace(QUICK, seconds=0)
    write_json(tmp_path / "old.json", {"search": {"rows": []}})
    with pytest.raises(ConfigError, match=r"holds the section 'search', measured with setting = None"):
        run(("search",), QUICK, path=tmp_path / "old.json")


# The command


def test_the_command_prints_a_table_and_writes_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "out.json"
    options = ["--device", "cpu", "--calls", "2", "--no-compiled", "--json", str(path), "--sections", "search"]
    assert not command(latency.Flags, latency.main, options)
    out = capsys.readouterr().out
    assert "50 x 8" in out
    assert "p95 ms" in out
    assert "A40" not in out
    assert read_json(path)["search"]["setting"]["calls"] == 2
    latency.main(latency.Flags(sections=("mlp",), device="cpu", calls=1, compiled=False))
    assert "mlp (" in capsys.readouterr().out


def test_the_table_names_the_gpu_and_what_was_given_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    row = {"name": "dp", "stage": "whole", "batch": 1, "calls": 1000, "p50_ms": 1234.5, "p95_ms": 0.01234}
    found = {
        "setting": {"device": "cuda"},
        "hardware": {"cpu": "CPU", "cores": 2, "gpu": "NVIDIA H200"},
        "about": "All.",
        "notes": ["dp: not compiled"],
        "rows": [{**row, "paper_ms": 84.4}, {**row, "batch": 50}],
    }
    latency.print_latency("act", found)
    out = capsys.readouterr().out
    for part in (
        "act (NVIDIA H200): All.",
        "paper,",
        "mean of",
        "tasks, A40",
        "84.4",
        "1,234",
        "0.0123",
        "1,000",
        "dp: not compiled",
    ):
        assert part in out, part


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    found = run(("denoise", "mlp", "act"), LatencyConfig("cuda", calls=20), say=lambda _: None)
    for name in ("denoise", "mlp"):
        stages = [r["stage"] for r in found[name]["rows"]]
        assert stages == 2 * ["eager", "compiled"], found[name]["notes"]
