from pathlib import Path

import pytest
from fake_run import write_fake_run

from classact.runs import Run


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with every file; tests only read it."""
    return write_fake_run(tmp_path_factory.mktemp("run"), episodes=12, queries=2, neighbors=5, size=32)


@pytest.fixture
def run_copy(whole_run: Run, tmp_path: Path) -> Run:
    """A run to change."""
    import shutil

    return Run(Path(shutil.copytree(whole_run.root, tmp_path / "run")))
