from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from classact.models.weights import seeded
from classact.objectives.causal import STD, CausalTransformer

SIZES = {"length": 5, "layers": 2, "heads": 3, "width": 12}


def make(seed: int = 0, scale: float = 1.0, **sizes: int) -> CausalTransformer:
    """A transformer with all parameters away from their plain initial values where ``scale`` is not 1."""
    with seeded(seed):
        model = CausalTransformer(7, 4, **{**SIZES, **sizes})
    if scale != 1:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return model.requires_grad_(False)


def inputs(B: int = 3, T: int = 5, F: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(B, T, F, generator=torch.Generator().manual_seed(seed))


def gpt(model: CausalTransformer, x: np.ndarray, heads: int) -> np.ndarray:
    """(T, F) -> (T, O): attention over the frames so far, frame by frame and head by head."""
    p = {name: value.double().numpy() for name, value in model.named_parameters()}

    def linear(name: str, v: np.ndarray) -> np.ndarray:
        return p[f"{name}.weight"] @ v + p[f"{name}.bias"]

    def norm(name: str, v: np.ndarray) -> np.ndarray:
        return (v - v.mean()) / math.sqrt(v.var() + 1e-5) * p[f"{name}.weight"] + p[f"{name}.bias"]

    h = [linear("project", frame) + p["positions"][t] for t, frame in enumerate(x)]
    width = len(h[0])
    D = width // heads
    for layer in range(len(model.blocks)):
        name = f"blocks.{layer}"
        qkv = [linear(f"{name}.qkv", norm(f"{name}.norm_attention", v)) for v in h]
        after = []
        for t in range(len(h)):
            joined = np.zeros(width)
            for n in range(heads):
                part = slice(n * D, (n + 1) * D)
                q = qkv[t][:width][part]
                scores = [math.exp(q @ qkv[u][width : 2 * width][part] / math.sqrt(D)) for u in range(t + 1)]
                for u in range(t + 1):
                    joined[part] += scores[u] / sum(scores) * qkv[u][2 * width :][part]
            v = h[t] + linear(f"{name}.attended", joined)
            wide = linear(f"{name}.wide", norm(f"{name}.norm_mlp", v))
            gelu = np.array([u / 2 * (1 + math.erf(u / math.sqrt(2))) for u in wide])
            after.append(v + linear(f"{name}.narrow", gelu))
        h = after
    return np.stack([linear("out", norm("norm", v)) for v in h])


@pytest.mark.parametrize("scale", [1.0, 0.4])
def test_equals_its_definition(scale: float) -> None:
    model, x = make(scale=scale).double(), inputs().double()
    expected = np.stack([gpt(model, row.numpy(), SIZES["heads"]) for row in x])
    np.testing.assert_allclose(model(x).numpy(), expected, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(model.float()(x.float()).numpy(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("t", range(5))
def test_later_frames_do_not_change_earlier_outputs(t: int) -> None:
    model, x = make(scale=0.4), inputs()
    other = x.clone()
    other[:, t] += 100
    before, after = model(x), model(other)
    assert torch.equal(before[:, :t], after[:, :t])
    for later in range(t, 5):
        assert ((before[:, later] - after[:, later]).abs().amax(dim=1) > 1e-4).all()


def test_a_shorter_context_is_the_start_of_a_longer_one() -> None:
    model, x = make(scale=0.4), inputs()
    for T in range(1, 5):
        torch.testing.assert_close(model(x[:, :T]), model(x)[:, :T])


def test_rows_do_not_see_each_other() -> None:
    model, x = make(scale=0.4), inputs()
    other = x.clone()
    other[1] += 1
    assert torch.equal(model(x)[[0, 2]], model(other)[[0, 2]])


def test_positions_matter() -> None:
    frame = inputs(1, 1).expand(1, 5, 7)
    out = make(scale=0.4)(frame)[0]
    assert torch.pdist(out).min() > 1e-2


def test_initial_weights() -> None:
    model = make(width=120, heads=6, layers=6)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            expected = STD / math.sqrt(12) if ".attended." in name or ".narrow." in name else STD
            assert float(parameter.std()) == pytest.approx(expected, rel=0.15), name
            assert abs(float(parameter.mean())) < 4 * expected / math.sqrt(parameter.numel()), name
    W = 120
    block = 4 * W + (3 * W * W + 3 * W) + (W * W + W) + (8 * W * W + 5 * W)
    ends = (7 * W + W) + 5 * W + 2 * W + (4 * W + 4)
    assert sum(parameter.numel() for parameter in model.parameters()) == 6 * block + ends
