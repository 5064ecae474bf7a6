from pathlib import Path

import pytest
from fake_run import write_fake_run

from classact.run.folder import Run


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with every file; tests only read it."""
    return write_fake_run(tmp_path_factory.mktemp("run"), episodes=12, queries=2, neighbors=5, size=32)


@pytest.fixture(scope="session")
def old_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run as it was before there were heads; tests only read it."""
    root = tmp_path_factory.mktemp("old")
    return write_fake_run(root, episodes=12, queries=2, neighbors=5, size=32, heads=False)


@pytest.fixture
def old_copy(old_run: Run, tmp_path: Path) -> Run:
    """A run from before there were heads, to change."""
    import shutil

    return Run(Path(shutil.copytree(old_run.root, tmp_path / "run")))


@pytest.fixture
def run_copy(whole_run: Run, tmp_path: Path) -> Run:
    """A run to change."""
    import shutil

    return Run(Path(shutil.copytree(whole_run.root, tmp_path / "run")))
