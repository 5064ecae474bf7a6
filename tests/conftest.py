"""What every test may use: an image cache of its own, and the public Push-T data where they are present."""

from __future__ import annotations

import os
import shutil
import signal

# Workers that run tests side by side (pytest -n) would each take every core, and wait for each other. Before torch and
# numba are imported, for their processes, too.
if os.environ.get("PYTEST_XDIST_WORKER"):
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from classact.run.folder import Run

# The default run draws the same examples each time, so that it fails because of a change alone. The other one looks for
# new examples: pytest --hypothesis-profile=search. Machines that run trainings at the same time are slow at times:
# neither measures time, and pytest's own time limit catches what hangs.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", UNTIMED, derandomize=True, database=None)
settings.register_profile("search", UNTIMED, derandomize=False, max_examples=500, print_blob=True)
settings.load_profile("same")

# A shell starts what it runs in the background with Ctrl-C ignored; tests of it press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

HUMAN_VARIABLE = "CLASSACT_PUSHT_HUMAN"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"

# Read when a LIBERO simulator is made, in worker processes, too.
if (SHARED / "libero_object_assets").is_dir():
    os.environ.setdefault("CLASSACT_LIBERO_ASSETS", str(SHARED / "libero_object_assets"))


@pytest.fixture(autouse=True)
def one_core_each() -> None:
    """Beside other workers each test begins with one thread, whatever the one before it left."""
    torch = sys.modules.get("torch")
    if torch is not None and os.environ.get("PYTEST_XDIST_WORKER"):
        torch.set_num_threads(1)


@pytest.fixture(scope="module")
def quick() -> Iterator[None]:
    """For modules that train: one thread, for sums depend on how they are split, and no waiting for the disk."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield
    torch.set_num_threads(threads)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA GPU, and torch sees none")


@pytest.fixture(scope="session", autouse=True)
def image_cache() -> Iterator[Path]:
    """One cache for the session, so that large data are decoded once; deleted afterwards, never the user's own."""
    with (
        tempfile.TemporaryDirectory(prefix="classact-cache-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("CLASSACT_CACHE", folder)
        yield Path(folder)


@pytest.fixture(scope="session")
def human_zarr() -> Path:
    """Diffusion Policy's 206 human Push-T demonstrations, 25,650 steps."""
    path = Path(os.environ.get(HUMAN_VARIABLE, SHARED / "pusht_human.zarr"))
    if not path.exists():
        pytest.skip(f"{path} is not here; set {HUMAN_VARIABLE} to pusht_cchi_v7_replay.zarr to run this test")
    return path


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with every file; tests only read it."""
    from fake_run import write_fake_run

    return write_fake_run(tmp_path_factory.mktemp("run"), episodes=12, queries=2, neighbors=5, size=32)


@pytest.fixture(scope="session")
def old_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run as it was before there were heads; tests only read it."""
    from fake_run import write_fake_run

    root = tmp_path_factory.mktemp("old")
    return write_fake_run(root, episodes=12, queries=2, neighbors=5, size=32, heads=False)


@pytest.fixture
def old_copy(old_run: Run, tmp_path: Path) -> Run:
    """A run from before there were heads, to change."""
    from classact.run.folder import Run

    return Run(Path(shutil.copytree(old_run.root, tmp_path / "run")))


@pytest.fixture
def run_copy(whole_run: Run, tmp_path: Path) -> Run:
    """A run to change."""
    from classact.run.folder import Run

    return Run(Path(shutil.copytree(whole_run.root, tmp_path / "run")))
