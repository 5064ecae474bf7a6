"""The small network's backward pass on two threads: to the same bits without the barriers of oneDNN."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from classact.models.encoders.small import SmallResNet


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("width", "batch", "size"), [(1, 160, 56), (1, 37, 56), (0.25, 64, 56), (1, 16, 40)])
def test_one_thread_computes_the_same_bits(
    width: float, batch: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it would not (narrow networks, small batches; which depends on oneDNN), two do as ever."""
    torch.manual_seed(0)
    network, images = SmallResNet(width), torch.randn(batch, 3, size, size)
    used: list[int] = []
    chosen = torch.set_num_threads

    def gradients() -> list[torch.Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            maps = network(images)
        maps.float().square().sum().backward()
        return [p.grad.clone() for p in network.parameters() if p.grad is not None]

    def choose(threads: int) -> None:
        used.append(threads)
        chosen(threads)

    plain = gradients()
    monkeypatch.setattr(torch, "set_num_threads", choose)
    again = gradients()
    assert used in ([], [1, 2], [1, 2, 1, 2])
    assert torch.get_num_threads() == 2
    assert all(torch.equal(one, two) for one, two in zip(plain, again, strict=True))
    used.clear()
    for module in network.modules():
        module._forward_hooks.clear()
    assert all(torch.equal(one, two) for one, two in zip(plain, gradients(), strict=True))
    assert not used


def test_on_other_numbers_of_threads_all_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    monkeypatch.setattr(torch, "set_num_threads", None)
    with torch.autocast("cpu", torch.bfloat16):
        SmallResNet()(torch.randn(4, 3, 32, 32)).float().sum().backward()
