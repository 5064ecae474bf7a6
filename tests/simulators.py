"""Which simulators can be tried here: what is absent is skipped, or fails where it must not be absent."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

import pytest

from classact.errors import ConfigError
from classact.sims import SIMULATORS
from classact.sims.libero_assets import ASSETS_VARIABLE, find_assets, package_folder

REQUIRED = "CLASSACT_REQUIRE_SIMULATORS"
"""Extras, separated by spaces, whose simulators have to be here."""


def absent(name: str) -> str:
    """Why a simulator cannot be tried; empty where it has to work."""
    extra = SIMULATORS[name].extra
    if extra == "aloha" and importlib.util.find_spec("gym_aloha") is None:
        return "gym-aloha is not installed"
    if extra == "locomotion" and importlib.util.find_spec("mujoco") is None:
        return "MuJoCo is not installed"
    if extra == "metaworld" and importlib.util.find_spec("metaworld") is None:
        return "MetaWorld is not installed"
    if extra == "robosuite":
        try:
            version = importlib.metadata.version("robosuite")
        except importlib.metadata.PackageNotFoundError:
            return "robosuite is not installed"
        return f"robosuite {version} is that of LIBERO" if version.startswith("1.4.") else ""
    if extra == "libero":
        if importlib.util.find_spec("libero") is None:
            return "LIBERO is not installed"
        try:
            find_assets(package_folder())
        except ConfigError as error:
            return "" if os.environ.get(ASSETS_VARIABLE) else str(error)
    return ""


def need(name: str) -> None:
    """Skip the test where a simulator is absent; fail where it must not be."""
    reason = absent(name)
    if reason and SIMULATORS[name].extra in os.environ.get(REQUIRED, "").split():
        pytest.fail(f"{REQUIRED} asks for simulator {name!r}: {reason}")
    if reason:
        pytest.skip(f"simulator {name!r}: {reason}")
