"""The encoder in LeRobot's own policies, by the snippets of docs/integrations.md."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("lerobot", reason="needs LeRobot in an environment of its own: .ci/lerobot")

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

from classact.models.encoders import EncoderConfig, ImageEncoder
from snippets import snippet

pytestmark = pytest.mark.filterwarnings("ignore")

FEATURES = {
    "input_features": {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (2,))},
}
OBSERVED = {"observation.image": torch.rand(2, 3, 64, 64), "observation.state": torch.rand(2, 2)}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (
            "lerobot-diffusion",
            DiffusionConfig(**FEATURES, pretrained_backbone_weights=None, down_dims=(32, 64), num_inference_steps=2),
        ),
        (
            "lerobot-act",
            ACTConfig(**FEATURES, pretrained_backbone_weights=None, dim_model=32, chunk_size=8, n_action_steps=8),
        ),
    ],
)
def test_an_encoder_of_classact_acts_and_learns_there(name: str, config: Any) -> None:
    if name == "lerobot-diffusion":
        pytest.importorskip("diffusers", reason="needs lerobot[diffusion]: .ci/lerobot")
    config.device = "cpu"
    encoder = ImageEncoder(EncoderConfig(width=0.25, image_size=32, crop_size=28))
    found = {"encoder": encoder, "config": config, "ACTPolicy": ACTPolicy, "DiffusionPolicy": DiffusionPolicy}
    exec(snippet(name), found)
    policy: Any = found["policy"]
    policy.eval()
    assert policy.select_action(dict(OBSERVED)).shape == (2, 2)
    policy.train()
    steps, horizon = (2, config.horizon) if name == "lerobot-diffusion" else (1, 8)
    batch: dict[str, Any] = {
        key: torch.stack([value] * steps, 1) if steps > 1 else value for key, value in OBSERVED.items()
    }
    batch |= {"action": torch.rand(2, horizon, 2), "action_is_pad": torch.zeros(2, horizon, dtype=torch.bool)}
    loss, _ = policy.forward(batch)
    loss.backward()
    assert all(value.grad is not None for value in encoder.views[0].backbone.parameters())
