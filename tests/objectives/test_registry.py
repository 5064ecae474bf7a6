"""Objectives by name: settings from text, and what is said of them without making them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from classact.errors import CheckpointError, ConfigError, DataError
from classact.objectives import (
    OBJECTIVES,
    CombinedConfig,
    ObjectiveConfig,
    SoftInfoNCEConfig,
    make_objective,
    objective_config,
)
from classact.objectives.base import Material, Objective
from classact.utils.codec import from_json, to_json
from small_objectives import TRAINED, small

NAMES = pytest.mark.parametrize("name", OBJECTIVES)
SUMS = [f"{one}+0.5*{two}" for one, two in combinations(TRAINED, 2)]
MANY = pytest.mark.parametrize("name", [*TRAINED, *SUMS, "+".join(TRAINED)])


def material() -> Material:
    """Two episodes of 40 and 30 steps; every step is as similar to every other."""
    return Material(
        feature_dim=6,
        episode_ends=np.array([40, 70], np.int64),
        actions=torch.zeros(70, 2),
        weights=lambda steps, anchors: torch.ones(anchors, len(steps)).fill_diagonal_(0),
    )


def changed(value: Any) -> Any:
    """Another value of the same type, where a number may be a little larger."""
    if isinstance(value, bool):
        return not value
    return value * 1.5 if isinstance(value, float) else 2 * value + 2


# -- each --------------------------------------------------------------------------------------------------------------


@NAMES
def test_an_entry_says_what_it_is(name: str) -> None:
    entry = OBJECTIVES[name]
    config = entry.config()
    assert is_dataclass(config)
    assert entry.config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert config.name == name
    assert objective_config(name) == config
    assert config.written == name
    assert config.terms == (config,)
    assert config.recipe == entry.config.recipe
    assert (entry.config.recipe.batch_size >= 2, entry.config.recipe.epochs >= 0) == (True, True)
    assert entry.config.label
    assert entry.config.about
    with pytest.raises(TypeError, match="name"):
        entry.config(name="other")


def test_labels_tell_them_apart() -> None:
    assert len({entry.config.label for entry in OBJECTIVES.values()}) == len(OBJECTIVES)


def test_none_is_the_only_one_that_is_not_trained() -> None:
    assert set(OBJECTIVES) - set(TRAINED) == {"none"}
    assert OBJECTIVES["none"].config.recipe.epochs == 0
    assert objective_config("none").images_per_anchor == 1
    with pytest.raises(ConfigError, match=r"objective 'none' leaves .* nothing to train"):
        make_objective(objective_config("none"), material())
    with pytest.raises(ConfigError, match=r"objective 'none' learns nothing, so it cannot be part of a sum, got \['cl"):
        objective_config("class+none")


@MANY
def test_what_is_said_of_it_is_what_is_made(name: str) -> None:
    config = small(name)
    made = make_objective(config, material())
    assert isinstance(made, Objective)
    assert config.images_per_anchor == (1 + made.config.companions) * made.config.views
    assert config.needs_similarity == made.config.needs_similarity
    assert made.draw(np.arange(5), np.random.default_rng(0)).shape == (5, made.config.companions)


@pytest.mark.parametrize(
    ("name", "options", "images"),
    [
        ("class", [], 1),
        ("class", ["views=3"], 3),
        ("tcn", [], 3),
        ("byol", [], 2),
        ("dynamo", [], 5),
        ("dynamo", ["context=8"], 8),
        ("inverse-dynamics", [], 2),
        ("time-contrastive", [], 3),
        ("class+inverse-dynamics", [], 2),
        ("class+byol", [], 2),
        ("tcn+inverse-dynamics", [], 4),  # one anchor, two companions and one more
        ("dynamo+byol", ["dynamo.context=4"], 8),
        ("class+tcn", ["class.views=2"], 6),
    ],
)
def test_images_per_anchor(name: str, options: Sequence[str], images: int) -> None:
    assert objective_config(name, options).images_per_anchor == images


@MANY
def test_settings_travel_through_json_by_name(name: str) -> None:
    config = small(name)
    written = json.loads(json.dumps(to_json(config)))
    assert written["name"] == (name if name in OBJECTIVES else "combined")
    assert from_json(ObjectiveConfig, written, "settings") == config
    assert json.dumps(to_json(from_json(ObjectiveConfig, written, "settings"))) == json.dumps(written)


def test_settings_that_no_objective_has_are_named() -> None:
    with pytest.raises(DataError, match=r"^settings: unknown objective 'clas': available are 'byol', .*mean 'class'\?"):
        from_json(ObjectiveConfig, {"name": "clas"}, "settings")
    written = to_json(objective_config("class+byol"))
    written["parts"][1]["decays"] = 1
    with pytest.raises(CheckpointError, match=r"^settings\.parts\[1\]: unknown field 'decays'"):
        from_json(ObjectiveConfig, written, "settings", error=CheckpointError)


@given(
    names=st.lists(st.sampled_from(TRAINED), min_size=1, max_size=4, unique=True),
    factors=st.lists(st.sampled_from([1.0, 0.1, 0.05, 2.0, 10.0, 0.25]), min_size=4, max_size=4),
)
def test_names_are_written_as_they_are_read(names: list[str], factors: list[float]) -> None:
    text = "+".join(name if factor == 1 else f"{factor:g}*{name}" for name, factor in zip(names, factors, strict=False))
    if len(names) == 1:
        text = names[0]
    config = objective_config(text)
    assert config.written == text
    assert objective_config(config.written) == config
    assert [part.name for part in config.terms] == names
    assert config.recipe == OBJECTIVES[names[0]].config.recipe
    assert config.needs_similarity == ("class" in names)


# -- options -----------------------------------------------------------------------------------------------------------


@NAMES
def test_every_setting_is_an_option(name: str) -> None:
    standard = objective_config(name)
    for field in fields(standard):
        value = getattr(standard, field.name)
        if not field.init or isinstance(value, str):
            continue
        try:
            expected = replace(standard, **{field.name: changed(value)})  # type: ignore[type-var]
        except ConfigError:  # needs another setting changed with it
            continue
        text = str(changed(value)).lower()
        assert objective_config(name, [f"{field.name}={text}"]) == expected
        if name != "class":
            assert objective_config(f"class+{name}", [f"{name}.{field.name}={text}"]).terms[1] == expected


def test_options_of_one_objective() -> None:
    config = objective_config("class", ["weighting=hard", "views=2", "learned_temperature=true", "temperature=0.5"])
    assert config == SoftInfoNCEConfig(weighting="hard", views=2, learned_temperature=True, temperature=0.5)
    assert objective_config("class", ["learned_temperature=false"]) == SoftInfoNCEConfig()
    assert objective_config("class", ["temperature=1e-1"]) == SoftInfoNCEConfig(temperature=0.1)


def test_options_of_a_sum_go_to_their_parts() -> None:
    options = ["byol.decay=0.9", "inverse-dynamics.horizon=4", "class.queue=64"]
    config = objective_config("class + 0.1*inverse-dynamics + 2 * byol", options)
    assert isinstance(config, CombinedConfig)
    assert config.weights == (1.0, 0.1, 2.0)
    similarity, inverse, byol = config.parts
    assert (similarity.queue, inverse.horizon, byol.decay) == (64, 4, 0.9)
    assert config == CombinedConfig(
        (
            SoftInfoNCEConfig(queue=64),
            objective_config("inverse-dynamics", ["horizon=4"]),
            objective_config("byol", ["decay=0.9"]),
        ),
        (1.0, 0.1, 2.0),
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clas", [], r"unknown objective 'clas': available are .*'class'.* Sums are written 'class\+0\.1\*byol'\."),
        ("class+byo", [], r"unknown objective 'byo': available are "),
        ("class+", [], r"unknown objective '': available are "),
        ("clas", [], r"\(did you mean 'class'\?\)\. Sums are"),  # one full stop
        ("0.5*class", [], r"a factor needs a sum: expected objectives like 'class\+0\.1\*byol', got '0\.5\*class'"),
        ("none+class", [], r"'none' learns nothing, so it cannot be part of a sum, got \['none', 'class'\]"),
        ("class+much*byol", [], r"expected objectives like 'class\+0\.1\*byol', got 'much' as a factor"),
        ("class+*byol", [], r"got '' as a factor"),
        ("class+class", [], r"at least two different objectives to combine, got \['class', 'class'\]"),
        ("class+0*byol", [], r"expected 2 weights above 0 for \['class', 'byol'\], got \[1\.0, 0\.0\]"),
        ("class+-1*byol", [], r"expected 2 weights above 0 for .* got \[1\.0, -1\.0\]"),
        ("class+nan*byol", [], r"expected 2 weights above 0 for .* got \[1\.0, nan\]"),
        ("class+inf*byol", [], r"expected 2 weights above 0 for .* got \[1\.0, inf\]"),
        ("class", ["queue"], r"expected options like 'key=value', got 'queue'\. 'class' has \['learned_temperature', "),
        ("class", ["que=3"], r"unknown option of objective 'class' 'que': available are .*'queue'"),
        ("class", ["name=tcn"], r"unknown option of objective 'class' 'name'"),
        ("class", ["queue=1.5"], r"expected a value like 0 for option 'queue' of objective 'class', got '1\.5'"),
        ("class", ["learned_temperature=yes"], r"expected true or false for option 'learned_temperature' of .* 'yes'"),
        ("class", ["queue=-1"], r"expected queue >= 0, got -1"),
        ("byol", ["decay=often"], r"expected a value like 0\.99 for option 'decay' of objective 'byol', got 'often'"),
        ("class", ["queue=1", "views=2", "queue=1"], r"option 'queue' of objective 'class' is given twice"),
        ("class+byol", ["byol.decay=0.9", "byol.decay=0.8"], r"option 'decay' of objective 'byol' is given twice"),
        ("none", ["decay=0.9"], r"objective 'none' has no options, got 'decay=0\.9'"),
        ("none", ["decay"], r"objective 'none' has no options, got 'decay'"),
        ("class+byol", ["decay=0.9"], r"expected options of 'class\+byol' like 'class\.key=value', got 'decay=0\.9'"),
        ("class+byol", ["tcn.margin=1"], r"expected options of 'class\+byol' like .*, got 'tcn\.margin=1'"),
        ("class+byol", ["byol.margin=1"], r"unknown option of objective 'byol' 'margin'"),
    ],
)
def test_what_cannot_be_read(name: str, options: Sequence[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective_config(name, options)


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("class", "temperature=inf", r"expected 0 < temperature < inf, got inf"),
        ("class", "temperature=nan", r"expected 0 < temperature < inf, got nan"),
        ("class", "weighting=soft-ish", r"unknown weighting 'soft-ish': available are 'hard', 'soft'"),
        ("class", "pairs=some", "unknown pairs 'some': available are 'all', 'cross-episode'"),
        ("class", "views=0", "expected views >= 1, got 0"),
        ("tcn", "margin=-1.0", r"0 <= margin < inf, got -1\.0"),
        ("tcn", "margin=nan", r"margin < inf, got nan"),
        ("tcn", "margin=inf", r"margin < inf, got inf"),
        ("tcn", "scale=0", r"0 < scale < inf, got 0\.0"),
        ("tcn", "scale=inf", r"0 < scale < inf, got inf"),
        ("tcn", "positive_margin=0", r"1 <= positive_margin < negative_margin, got positive_margin 0"),
        ("tcn", "positive_margin=30", r"positive_margin 30 and negative_margin 30: a negative must be farther"),
        ("byol", "hidden=0", r"hidden >= 1, got 0"),
        ("byol", "projection=-1", r"projection >= 1, got -1"),
        ("byol", "decay=1.0", r"0 <= decay < 1, got 1\.0"),
        ("byol", "decay=nan", r"got nan"),
        ("time-contrastive", "similarity=dot", r"unknown similarity 'dot': available are 'cosine', 'l2'"),
        ("time-contrastive", "temperature=inf", r"0 < temperature < inf, got inf"),
        ("time-contrastive", "temperature=0", r"0 < temperature < inf, got 0\.0"),
        ("time-contrastive", "negatives=-1", r"negatives >= 0, got -1"),
        ("time-contrastive", "window=1", r"at least 2, for i < j < k, got 1"),
        ("time-contrastive", "window=-3", r"got -3"),
        ("dynamo", "context=1", "expected context >= 2, got 1"),
        ("dynamo", "latent_dim=0", "expected latent_dim >= 1, got 0"),
        ("dynamo", "layers=-1", "expected layers >= 1, got -1"),
        ("dynamo", "width=100", "a width of 100 and 6 heads do not allow; choose a multiple of 6"),
        ("dynamo", "covariance_weight=-0.1", r"0 <= covariance_weight < inf, got -0\.1"),
        ("dynamo", "covariance_weight=nan", "got nan"),
        ("dynamo", "covariance=all", "unknown covariance 'all': available are 'mean', 'sum'"),
        ("dynamo", "target=momentum", "unknown target 'momentum': available are 'ema', 'stop-gradient'"),
        ("dynamo", "decay=1.0", r"0 <= decay < 1, got 1\.0"),
        ("inverse-dynamics", "horizon=0", "expected horizon >= 1, got 0"),
        ("inverse-dynamics", "hidden=-2", "expected hidden >= 1, got -2"),
    ],
)
def test_settings_out_of_range(name: str, option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        objective_config(name, [option])


@pytest.mark.parametrize("temperature", [2.0, 0.001])
def test_a_learned_temperature_starts_within_its_range(temperature: float) -> None:
    with pytest.raises(ConfigError, match=rf"held within 0\.01\.\.1\.0; it cannot start from {temperature}"):
        SoftInfoNCEConfig(learned_temperature=True, temperature=temperature)


def test_defaults_are_those_of_the_papers_and_repositories() -> None:
    assert {name: to_json(objective_config(name)) for name in OBJECTIVES if name != "class"} == {
        name: {"name": name, **settings}
        for name, settings in {
            "tcn": {"margin": 2.0, "scale": 10.0, "positive_margin": 10, "negative_margin": 30},
            "byol": {"hidden": 4096, "projection": 256, "decay": 0.99},
            "dynamo": {
                "context": 5,
                "latent_dim": 32,
                "layers": 6,
                "heads": 6,
                "width": 120,
                "covariance_weight": 0.04,
                "covariance": "mean",
                "target": "stop-gradient",
                "decay": 0.99,
            },
            "inverse-dynamics": {"horizon": 1, "hidden": 256},
            "time-contrastive": {"similarity": "l2", "temperature": 1.0, "negatives": 3, "window": 0},
            "none": {},
        }.items()
    }


def test_options_change_what_a_preset_has() -> None:
    start = SoftInfoNCEConfig(pairs="cross-episode", temperature=0.1)
    assert objective_config("class", (), start) == start
    assert objective_config("class", ["views=2"], start) == replace(start, views=2)
    assert objective_config("class", ["temperature=0.05"], start) == replace(start, temperature=0.05)
    # Where the name is another, or the part of a sum is, they are not the preset's to decide.
    assert objective_config("byol", ["decay=0.9"], start) == objective_config("byol", ["decay=0.9"])
    found = objective_config("byol+0.1*class", ["class.views=2"], start)
    assert found.terms == (objective_config("byol"), replace(start, views=2))
    both = objective_config("class+byol", ["byol.decay=0.9", "class.queue=8"])
    assert objective_config("byol", (), both) == objective_config("byol", ["decay=0.9"])
    assert objective_config("class", ["views=3"], both) == SoftInfoNCEConfig(queue=8, views=3)
    assert objective_config("tcn", (), both) == objective_config("tcn")


# -- titles ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "title"),
    [
        ("class", [], "CLASS"),
        ("class", ["weighting=hard"], "CLASS (weighting=hard)"),
        ("class", ["weighting=soft"], "CLASS"),  # said, but not changed
        ("class", ["queue=64", "views=2"], "CLASS (views=2, queue=64)"),
        ("none", [], "Initial weights"),
        ("byol+0.5*class", [], "VINN + CLASS"),
        ("class+0.1*byol", ["byol.decay=0.9"], "CLASS + VINN (decay=0.9)"),
    ],
)
def test_titles_say_what_was_changed(name: str, options: Sequence[str], title: str) -> None:
    assert objective_config(name, options).describe() == title


def test_class_without_similarity() -> None:
    with pytest.raises(ConfigError, match="objective 'class' learns from action similarity, and none was measured"):
        make_objective(SoftInfoNCEConfig(), replace(material(), weights=None))
