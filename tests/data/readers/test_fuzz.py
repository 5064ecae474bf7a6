"""Damaged files: a named error in time, or data; never another exception.

``CLASSACT_MUTANTS=1000 uv run pytest tests/data/readers/test_fuzz.py`` tries a thousand of each format.
"""

from __future__ import annotations

import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lerobot_files import episode, write_v2, write_v3
from test_inputs import FORMATS

from classact.data.readers import read_demonstrations
from classact.errors import ClassactError

MUTANTS = int(os.environ.get("CLASSACT_MUTANTS", "25"))
SECONDS = 5.0
MEBIBYTES = 512
"""That a mutant may take beyond what was in use, in all."""


def _v2(folder: Path) -> Path:
    return write_v2(folder / "v2", [episode(n, n, task=f"task {n}") for n in (3, 4)])


def _pictures(folder: Path) -> Path:
    return write_v3(folder / "pictures", [episode(n, n) for n in (3, 4)], pictures=True)


WRITERS: dict[str, Callable[[Path], Path]] = {name: write for name, (write, _) in FORMATS.items()}
WRITERS |= {"lerobot-v2": _v2, "lerobot-pictures": _pictures}


def mutate(path: Path, rng: np.random.Generator) -> str:
    """Damage one file of a data set; returns what was done."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    file = files[rng.integers(len(files))]
    content = bytearray(file.read_bytes())
    kind = ("truncate", "flip", "zero", "repeat", "empty", "delete", "swap", "number")[rng.integers(8)]
    if kind == "truncate":
        content = content[: rng.integers(len(content) + 1)]
    elif kind == "flip":
        for at in rng.integers(0, max(1, len(content)), rng.integers(1, 9)):
            if content:
                content[at] ^= 1 << int(rng.integers(8))
    elif kind in ("zero", "repeat") and content:
        start = int(rng.integers(len(content)))
        block = content[start : start + int(rng.integers(1, 257))]
        content[start : start + len(block)] = bytes(len(block)) if kind == "zero" else block * 3
    elif kind == "empty":
        content = bytearray()
    elif kind == "delete":
        file.unlink()
    elif kind == "swap":
        content = bytearray(files[rng.integers(len(files))].read_bytes())
    elif kind == "number":  # absurd sizes in texts such as JSON
        digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
        if digits:
            at = digits[rng.integers(len(digits))]
            content[at : at + 1] = (b"-1", b"99999999", b"1e30", b"null")[rng.integers(4)]
    if kind != "delete":
        file.write_bytes(bytes(content))
    return f"{kind} {file.relative_to(path) if path.is_dir() else file.name}"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.filterwarnings("ignore")
def test_damage_is_a_named_error_or_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSACT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "whole").mkdir()
    whole = WRITERS[name](tmp_path / "whole")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    refused = 0
    for seed in range(MUTANTS):
        copy = tmp_path / "mutant" / whole.name
        shutil.rmtree(copy.parent, ignore_errors=True)
        copy.parent.mkdir()
        if whole.is_dir():
            shutil.copytree(whole, copy)
        else:
            shutil.copy(whole, copy)
        what = mutate(copy, np.random.default_rng([seed, len(name)]))
        begin = time.perf_counter()
        try:
            data = read_demonstrations(copy)
            for images in data.images.values():
                np.asarray(images[: min(len(images), 8)])
        except ClassactError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{name}, mutant {seed} ({what}): {type(error).__name__}: {error}") from error
        spent = time.perf_counter() - begin
        assert spent < SECONDS, f"{name}, mutant {seed} ({what}) took {spent:.1f} s"
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
        assert grown < MEBIBYTES, f"{name}, mutant {seed} ({what}): {grown:.0f} MiB more"
    assert refused > MUTANTS / 6  # numbers without a checksum may be changed unseen
