from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from numpy.testing import assert_allclose
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from classact.errors import ConfigError
from classact.models.heads import (
    DiffusionConfig,
    FastSampler,
    Head,
    HeadConfig,
    MLPConfig,
    UNetConfig,
    head_name,
    make_head,
)

TINY = UNetConfig(widths=(8, 16), kernel_size=3, groups=4, step_dim=8)
CONFIGS: list[HeadConfig] = [
    DiffusionConfig(TINY),
    DiffusionConfig(TINY, scheduler="ddpm", inference_steps=5),
    MLPConfig(TINY),
]
names = pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{head_name(c)}-{getattr(c, 'scheduler', '')}")
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default}
"""Operations that hand a value to the processor, which a graph cannot do."""


class FakeGraph(TorchDispatchMode):
    """What a CUDA graph does, on the CPU: operations are kept as they are first run, and run again on the same memory.

    Nothing of the Python around them is run again, so what depends on anything but the inputs' memory shows.
    """

    made = 0

    def __init__(self, function: Callable[[], Tensor]) -> None:
        super().__init__()
        FakeGraph.made += 1
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        with self:
            self.output = function()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            raise RuntimeError(f"{func} waits for the device")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(*((x,) if isinstance(x, Tensor) else x for x in (out, again)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def features(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 6, generator=generator(seed))


def made(config: HeadConfig) -> Head:
    return make_head(config, 6, 3, 8)


@names
def test_replayed_chunks_are_those_of_the_head(config: HeadConfig) -> None:
    head = made(config)
    fast = FastSampler(head, recorder=FakeGraph, patience=1)
    kept = []
    for call in range(4):
        x = features(3, call)
        got = fast.sample(x, generator(call))
        expected = head.sample(x, generator(call))
        assert_allclose(got, expected, atol=1e-6)
        assert fast.mode == ("captured" if call else "eager")
        kept.append((got, expected))
    for got, expected in kept:  # no later call has written to them
        assert_allclose(got, expected, atol=1e-6)
    rows = [generator(s) for s in (5, 6, 7)]
    again = [generator(s) for s in (5, 6, 7)]
    assert_allclose(fast.sample(x, rows), head.sample(x, again), atol=1e-6)
    assert all(torch.equal(one.get_state(), other.get_state()) for one, other in zip(rows, again, strict=True))
    assert fast.notes == []


def test_one_graph_for_each_batch_size_the_least_recent_goes_first() -> None:
    head = made(CONFIGS[2])
    fast = FastSampler(head, recorder=FakeGraph, patience=0, graphs=2)
    before = FakeGraph.made
    for batch, graphs in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (3, 3), (2, 4)):
        x = features(batch, batch)
        assert_allclose(fast.sample(x, generator()), head.sample(x, generator()), atol=1e-6)
        assert FakeGraph.made - before == graphs, batch
    assert len(fast._replays) == 2
    fast.reset()
    assert fast.mode == "eager"


def test_prepare_records_at_once() -> None:
    fast = FastSampler(made(CONFIGS[0]), recorder=FakeGraph, patience=2)
    assert fast.mode == "eager"
    fast.prepare(4)
    assert fast.mode == "captured"
    before = FakeGraph.made
    fast.sample(features(4), generator())
    assert FakeGraph.made == before


def test_weights_count_when_they_change_in_place_and_when_they_move() -> None:
    head = made(CONFIGS[0])
    fast = FastSampler(head, recorder=FakeGraph, patience=0)
    x = features(2)
    first = fast.sample(x, generator())
    head.load_state_dict(make_head(CONFIGS[0], 6, 3, 8, seed=1).state_dict())
    before = FakeGraph.made
    second = fast.sample(x, generator())
    assert FakeGraph.made == before
    assert not torch.allclose(first, second, atol=1e-3)
    assert_allclose(second, head.sample(x, generator()), atol=1e-6)
    for parameter in head.parameters():
        parameter.data = parameter.data.clone() * 0.9  # as moving to a device does
    third = fast.sample(x, generator())
    assert FakeGraph.made == before + 1
    assert_allclose(third, head.sample(x, generator()), atol=1e-6)


@names
def test_in_and_out_of_inference_mode(config: HeadConfig) -> None:
    head = made(config)
    fast = FastSampler(head, recorder=FakeGraph, patience=0)
    with torch.inference_mode():
        first = fast.sample(features(2), generator())
    second = fast.sample(features(2), generator())
    with torch.inference_mode():
        third = fast.sample(features(2), generator())
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert not second.requires_grad


def test_where_recording_fails_sampling_goes_on_and_says_why() -> None:
    head = made(CONFIGS[0])
    calls = []

    def fails(function: Callable[[], Tensor]) -> Any:
        calls.append(function)
        raise RuntimeError("operation not permitted when stream is capturing")

    fast = FastSampler(head, recorder=fails, patience=0)
    for _ in range(3):
        assert_allclose(fast.sample(features(2), generator()), head.sample(features(2), generator()), atol=1e-6)
    assert len(calls) == 1
    assert fast.notes == ["not captured as a graph: RuntimeError: operation not permitted when stream is capturing"]
    assert fast.mode == "eager"


def test_a_loop_that_reads_from_the_device_cannot_be_recorded() -> None:
    head = made(CONFIGS[2])
    plain = head.generate
    head.generate = lambda *inputs: plain(*inputs) * float(inputs[0].sum())  # type: ignore[method-assign]
    fast = FastSampler(head, recorder=FakeGraph, patience=0)
    fast.sample(features(2), generator())
    assert "_local_scalar_dense.default waits for the device" in fast.notes[0]


def test_without_a_gpu_and_without_patience() -> None:
    head = made(CONFIGS[0])
    plain = FastSampler(head, patience=0)
    off = FastSampler(head, patience=0, capture=False, recorder=FakeGraph)
    for fast in (plain, off):
        assert torch.equal(fast.sample(features(2), generator()), head.sample(features(2), generator()))
        assert fast.mode == "eager"
    assert FastSampler(head, patience=0, recorder=FakeGraph).sample(features(0), []).shape == (0, 8, 3)


def test_bad_input() -> None:
    head = made(CONFIGS[0])
    with pytest.raises(ConfigError, match=r"features of shape \(B, 6\), got \(2, 5\)"):
        FastSampler(head).sample(torch.zeros(2, 5), generator())
    with pytest.raises(ConfigError, match=r"one for each of 2 rows, got 1 generators"):
        FastSampler(head).sample(torch.zeros(2, 6), [generator()])
    with pytest.raises(ConfigError, match=r"patience >= 0 and graphs >= 1, got -1 and 8"):
        FastSampler(head, patience=-1)
    with pytest.raises(ConfigError, match=r"got 2 and 0"):
        FastSampler(head, graphs=0)


# Compiling


@names
def test_a_compiled_network_takes_the_place_of_the_unet(config: HeadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    head, calls = made(config), []

    def compiler(network: Any, **options: Any) -> Any:
        def compiled(*inputs: Any) -> Any:
            calls.append(options)
            return network(*inputs)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    fast = FastSampler(head, compiled=True, patience=1, recorder=FakeGraph)
    for call in range(3):
        x = features(2, call)
        assert torch.equal(fast.sample(x, generator(call)), head.sample(x, generator(call)))
    passes = getattr(config, "inference_steps", 1)
    assert calls == 2 * passes * [{"dynamic": False}]  # one call, and one that was recorded
    assert fast.mode == "compiled, captured"


def test_where_compiling_fails_sampling_goes_on_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler(*_: Any, **__: Any) -> Any:
        def compiled(*_: Any) -> Any:
            raise OSError("no C++ compiler\n(and a long story)")

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    head = made(CONFIGS[0])
    fast = FastSampler(head, compiled=True)
    assert fast.mode == "compiled"
    assert torch.equal(fast.sample(features(2), generator()), head.sample(features(2), generator()))
    assert (fast.mode, fast.notes) == ("eager", ["not compiled: OSError: no C++ compiler"])


@pytest.mark.parametrize("config", CONFIGS[::2], ids=head_name)
def test_torch_traces_the_unet_in_one_piece(config: HeadConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without generating code, which takes half a minute and a C++ compiler.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    head = made(config)
    fast = FastSampler(head, compiled=True)
    assert_allclose(fast.sample(features(2), generator()), head.sample(features(2), generator()), atol=1e-6)
    assert (fast.mode, fast.notes) == ("compiled", [])


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@names
def test_cuda_graphs(config: HeadConfig, compiled: bool) -> None:
    head = made(config).cuda()
    fast = FastSampler(head, compiled=compiled, patience=1)
    for call in range(4):
        for batch in (1, 5):
            x = features(batch, call)
            expected = head.sample(x.cuda(), generator(call)).cpu()
            assert_allclose(fast.sample(x, generator(call)).cpu(), expected, atol=2e-3)  # TF32 in convolutions
    assert fast.notes == []
    assert fast.mode == ("compiled, captured" if compiled else "captured")
    moved = head.cpu()
    x = features(2)
    assert_allclose(fast.sample(x, generator()), moved.sample(x, generator()), atol=1e-4)
