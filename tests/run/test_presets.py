from __future__ import annotations

from dataclasses import replace

import pytest

from classact.cli.flags import changed
from classact.errors import ConfigError
from classact.models.encoders import EncoderConfig, ImageEncoder
from classact.objectives import OBJECTIVES, objective_config
from classact.run.presets import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PRESETS,
    configure_head,
    default_preset,
    from_preset,
    with_backbone,
    with_objective,
)
from classact.sims import SIMULATORS, Entry, simulator_spec

# Table 5: top K in per cent, epochs, tau_nn on homogeneous and on heterogeneous data.
TABLE_5 = {
    "paper-square": (2.5, 50, 0.01, 0.02),
    "paper-three-stack": (1.0, 10, 0.01, 0.02),
    "paper-aloha-transfer": (2.5, 50, 0.01, 0.02),
    "paper-libero-object": (2.5, 50, 0.01, 0.02),
    "paper-pusht": (1.5, 100, 0.001, 0.002),
    "paper-real": (2.5, 50, 0.02, 0.02),
}


def test_all_presets_of_the_paper_are_checked_here() -> None:
    assert {name for name in PRESETS if name.startswith("paper")} == set(TABLE_5)


@pytest.mark.parametrize("name", TABLE_5)
def test_tables_3_to_5(name: str) -> None:
    preset = PRESETS[name]
    pretrain, optimizer, encoder = preset.pretrain, preset.pretrain.optimizer, preset.pretrain.encoder
    top_k, *rest = TABLE_5[name]
    assert pretrain.similarity.quantile == pytest.approx(top_k / 100)
    assert [pretrain.epochs, preset.retrieval.temperature, preset.tau_shifted] == rest
    assert (optimizer.clip_norm, optimizer.warmup_steps, optimizer.ema_power) == (0.5, 500, 0.75)  # table 3
    table_4 = {
        "DTW Horizon": (pretrain.similarity.horizon, 16),
        "Optimizer": (optimizer.name, "lars"),
        "Batch size": (pretrain.batch_size, 160),
        "Learning rate": (optimizer.learning_rate, 0.5),
        "Momentum": (optimizer.momentum, 0.9),
        "Weight decay": (optimizer.weight_decay, 1e-6),
        "tau": (pretrain.objective.temperature, 0.05),
        "T_a": (preset.retrieval.chunk_length, 16),
        "k_nn": (preset.retrieval.k, 64),
    }
    assert {key: made for key, (made, _) in table_4.items()} == {key: wanted for key, (_, wanted) in table_4.items()}
    # Appendix B: rotations count half. Section 4.2: a crop for each image and Gaussian noise, nothing else.
    assert pretrain.similarity.rotation_scale == 0.5
    assert (pretrain.augment.crop, pretrain.augment.noise_std, pretrain.augment.color) == ("image", 5.0, "none")
    # C.1, 5.2: ResNet-18 from ImageNet; 256 -> 224; torchvision's channel statistics, here of 0..255 values.
    shape = (encoder.backbone, encoder.width, encoder.image_size, encoder.crop_size, encoder.init, encoder.color)
    assert shape == ("resnet18", 1.0, 256, 224, "imagenet", "rgb")
    assert encoder.mean == pytest.approx([255 * v for v in (0.485, 0.456, 0.406)])
    assert encoder.std == pytest.approx([255 * v for v in (0.229, 0.224, 0.225)])


def test_features_of_the_paper() -> None:
    """512 maps of 7 x 7, two coordinates of each."""
    encoder = ImageEncoder(PRESETS["paper-pusht"].pretrain.encoder, load_init=False)
    assert encoder.feature_dim == 1024
    assert encoder.views[0].pool.grid.shape == (49, 2)


@pytest.mark.parametrize("name", PRESETS)
def test_steps(name: str) -> None:
    """ceil(N epochs / batch)."""
    pretrain = PRESETS[name].pretrain
    steps = pretrain.steps(25_650)
    assert (steps - 1) * pretrain.batch_size < 25_650 * pretrain.epochs <= steps * pretrain.batch_size


def test_what_the_improved_presets_change() -> None:
    """Larger images, and fewer of them: the time of training is bounded."""
    plain, plus, shifted = (PRESETS[name] for name in ("pusht-cpu", "pusht-plus", "pusht-rand-plus"))
    larger = {"encoder.image_size": 96, "encoder.crop_size": 84, "epochs": 16.0}
    queued = changed(replace(plain.pretrain, objective=objective_config("class", ["queue=1280"])), larger)
    assert plus == replace(plain, pretrain=queued, about=plus.about)
    whitened = changed(queued, {"encoder.color": "whiten", "augment.color": "rotate"})
    assert shifted == replace(plain, pretrain=whitened, about=shifted.about)


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'pusht': available are 'aloha-transfer-cpu', 'cpu', 'debug'"):
        PRESETS["pusht"]


@pytest.mark.parametrize(
    ("data", "simulator", "shift", "expected"),
    [
        ("pusht-expert", "pusht", "fixed-color", "pusht-demo"),
        ("human.zarr", "pusht", "fixed-color", "pusht-cpu"),
        ("human.zarr", "pusht", "rand-color", "pusht-rand-whiten"),
        ("a.npz", "three-stack-d1", "dynamic", "three-stack-cpu"),
        ("a.npz", "aloha-transfer", "fixed", "aloha-transfer-cpu"),
    ],
)
def test_preset_where_none_is_named(data: str, simulator: str, shift: str, expected: str) -> None:
    assert default_preset(data, simulator, shift) == expected
    assert expected in PRESETS


def test_the_preset_of_a_simulator_that_none_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIMULATORS._entries, "kitchen", Entry("kitchen:make", "Kitchen"))
    assert default_preset("a.npz", "kitchen", "fixed") == default_preset("a.npz", "kitchen", "dynamic") == "cpu"
    with pytest.raises(ConfigError, match="unknown simulator 'bathroom'"):
        default_preset("a.npz", "bathroom", "fixed")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_for_a_simulator_that_there_is(name: str) -> None:
    """Table 10: the paper's tasks are seen by one global camera at 256 pixels."""
    preset = PRESETS[name]
    assert preset.simulator in SIMULATORS
    if name.startswith("paper-") and preset.simulator != "pusht":
        camera = "top" if preset.simulator == "aloha-transfer" else "agentview"
        assert (preset.render_size, preset.pretrain.encoder.cameras) == (256, (camera,))


# Other objectives

C_1 = {"tcn": (64, 200, 1e-4), "byol": (64, 200, 1e-4), "dynamo": (64, 40, 1e-4)}
"""Appendix C.1: batch size, epochs, learning rate."""


@pytest.mark.parametrize("name", C_1)
def test_baselines_of_the_paper(name: str) -> None:
    made = with_objective(PRESETS["paper-square"].pretrain, objective_config(name))
    assert (made.batch_size, made.epochs, made.optimizer.learning_rate) == C_1[name]
    shared = (made.optimizer.clip_norm, made.optimizer.warmup_steps, made.optimizer.ema_power)
    assert shared == (0.5, 500, 0.75)  # table 3
    assert (made.optimizer.name, made.encoder.init) == ("adamw", "imagenet")
    assert isinstance(made.objective, OBJECTIVES[name].config)


def test_dynamo_has_table_6() -> None:
    config = objective_config("dynamo")
    assert (config.context, config.latent_dim) == (5, 32)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", [*OBJECTIVES, "class+0.1*inverse-dynamics"])
def test_on_a_cpu_all_objectives_see_as_many_images(name: str) -> None:
    plain = PRESETS["pusht-cpu"].pretrain
    made = with_objective(plain, objective_config(name))
    steps = made.steps(25_650)
    seen = steps * made.batch_size * made.objective.images_per_anchor
    if name != "none":
        assert 20 * 25_650 <= seen < 20 * 25_650 + made.batch_size * made.objective.images_per_anchor
    assert made.encoder == plain.encoder
    assert made.augment == plain.augment


def test_class_stays_as_it_was() -> None:
    plain = PRESETS["pusht-cpu"].pretrain
    assert with_objective(plain, objective_config("class")) == plain
    hard = with_objective(plain, objective_config("class", ["weighting=hard"]))
    assert hard.optimizer == plain.optimizer
    assert (hard.epochs, hard.batch_size) == (plain.epochs, plain.batch_size)


@pytest.mark.parametrize("name", ["paper-square", "paper-pusht"])
@pytest.mark.parametrize("options", [["class.views=2"], ["class.queue=640", "class.weighting=hard"]])
@pytest.mark.parametrize("more", ["", "+0.1*byol", "+tcn"])
def test_with_the_papers_network_class_keeps_its_epochs(name: str, options: list[str], more: str) -> None:
    plain = PRESETS[name].pretrain
    own = options if more else [option.removeprefix("class.") for option in options]
    objective = objective_config(f"class{more}", own)
    assert objective.images_per_anchor > 1 or not more
    assert with_objective(plain, objective) == replace(plain, objective=objective)


def test_with_the_papers_network_a_sum_is_trained_as_its_first_part_is() -> None:
    made = with_objective(PRESETS["paper-square"].pretrain, objective_config("dynamo+0.1*class"))
    assert (made.batch_size, made.epochs, made.optimizer.learning_rate) == C_1["dynamo"]


def test_on_a_cpu_two_views_are_seen_for_half_the_epochs() -> None:
    plain = PRESETS["pusht-cpu"].pretrain
    made = with_objective(plain, objective_config("class", ["views=2"]))
    assert made == replace(plain, objective=made.objective, epochs=plain.epochs / 2)


@pytest.mark.parametrize("name", ["pusht-cpu", "paper-square"])
def test_another_network_starts_from_scratch_with_its_own_scaling(name: str) -> None:
    encoder = PRESETS[name].pretrain.encoder
    assert with_backbone(encoder, encoder.backbone) is encoder
    scaling = {
        "small": (EncoderConfig().mean, EncoderConfig().std),
        "resnet18": (IMAGENET_MEAN, IMAGENET_STD),
        "equivariant": ((127.5,) * 3, (127.5,) * 3),
    }
    for backbone, (mean, std) in scaling.items():
        made = with_backbone(encoder, backbone)
        if backbone != encoder.backbone:
            assert made == replace(encoder, backbone=backbone, init="scratch", mean=mean, std=std)
    with pytest.raises(ConfigError, match="unknown encoder backbone 'resnet50'"):
        with_backbone(encoder, "resnet50")


def test_heads_play_as_fast_as_their_run_and_decide_as_often_in_demonstrated_steps() -> None:
    fast = configure_head(from_preset("pusht-plus"), "mlp").finetune
    slow = configure_head(from_preset("aloha-transfer-cpu"), "mlp").finetune
    assert (fast.speed, fast.chunk_length, slow.speed, slow.chunk_length) == (2.0, 4, 1.0, 20)
    assert (fast.horizon, slow.horizon) == (16, 104)  # 2 s, a multiple of what a U-Net halves
    made = from_preset("pusht-plus")
    odd = configure_head(replace(made, retrieval=replace(made.retrieval, speed=1.5)), "mlp").finetune
    assert (odd.speed, odd.chunk_length) == (1.5, 5)


@pytest.mark.parametrize("name", ["square", "three-stack-d0", "three-stack-d1", "aloha-transfer", "libero-object"])
def test_windows_of_arms_last_as_long_at_any_rate(name: str) -> None:
    preset = PRESETS[default_preset("a.npz", name, "dynamic")]
    hz = simulator_spec(name).control_hz
    assert (preset.pretrain.similarity.horizon / hz, preset.retrieval.horizon / hz) == (2.0, 2.0)
    assert preset.retrieval.chunk_length / hz == preset.retrieval.min_actions / hz == 0.4
