from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "classact"

LEVELS = (
    "errors",
    "utils",
    "data",
    "similarity",
    "models",
    "objectives",
    "sims",
    "policies",
    "train",
    "evaluation",
    "run",
    "pages",
    "api",
    "cli",
    "__main__",
)
"""Folders of the package, lowest first. A module imports from its own folder and from lower ones."""

STRANGERS = (("policies", "sims"),)
"""Never import each other, in either direction."""

HEAVY = (
    *("torch", "numba", "plotly", "zarr", "gym_pusht", "openTSNE", "av", "timm", "scipy", "pygame", "safetensors"),
    *("h5py", "mujoco"),
)


def module_name(path: Path) -> str:
    parts = ["classact", *path.relative_to(SOURCE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imported(path: Path) -> list[tuple[str, int]]:
    """(module of classact, line) of every import of a file, those inside functions too."""
    found: list[tuple[str, int]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: imports are written in full, not relative."
            # "from classact import sims" imports a folder, "from classact.errors import DataError" a name of a module.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if name in FILES else str(node.module), node.lineno) for name in names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
    return [(name, line) for name, line in found if name.split(".")[0] == "classact"]


def folder(module: str) -> str:
    """``classact.sims.pusht`` -> ``sims``; the package itself, and what it exports, is empty."""
    return module.split(".")[1] if module in FILES and module != "classact" else ""


def test_every_folder_has_a_level() -> None:
    found = {folder(name) for name in FILES} - {""}
    assert found == set(LEVELS), (
        f"LEVELS in {__file__} and the folders differ in {sorted(found ^ set(LEVELS))}: a new folder stands above "
        f"those that it imports and below those that import it."
    )


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    own = folder(module)
    for name, line in imported(FILES[module]):
        other = folder(name)
        if own and other not in ("", own):
            assert LEVELS.index(other) < LEVELS.index(own), (
                f"{FILES[module]}, line {line}: {own} imports {other}, which stands above it. Data flow one way: move "
                f"what both need into a lower folder."
            )


@pytest.mark.parametrize(("one", "two"), STRANGERS)
def test_strangers_do_not_import_each_other(one: str, two: str) -> None:
    for module, path in FILES.items():
        for name, line in imported(path):
            assert {folder(module), folder(name)} != {one, two}, (
                f"{path}, line {line}: {folder(module)} imports {folder(name)}. Anything that works with both belongs "
                f"into a higher folder."
            )


def test_the_check_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("import os\ndef f():\n    from classact import sims\n    import classact.evaluation.rollout\n")
    assert imported(file) == [("classact.sims", 3), ("classact.evaluation.rollout", 4)]


def loaded(code: str) -> list[str]:
    """Which of HEAVY a fresh interpreter holds after ``code``."""
    program = f"import sys\n{code}\nprint('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=True)
    return run.stdout.rsplit("LOADED", 1)[1].split()


@pytest.mark.parametrize(
    "code",
    [
        "import classact",
        "import classact.cli.main; assert classact.cli.main.main(['--help']) == 0",
        "import classact.cli.main; assert classact.cli.main.main(['--version']) == 0",
        "from classact import objectives, policies, similarity; from classact.models import encoders, heads",
        "import classact.sims.pool, classact.run.frames, classact.run.folder, classact.data.readers",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    assert loaded(code) == []


def test_a_simulator_process_loads_its_simulator_and_nothing_else() -> None:
    # Each rollout process runs this before its first step.
    code = "import classact.__main__, classact.sims.pool, classact.sims; classact.sims.make_simulator('pusht')"
    found = loaded(code + "; assert 'classact.cli' not in sys.modules and 'tyro' not in sys.modules")
    assert set(found) <= {"gym_pusht", "pygame"}


def test_pages_are_drawn_without_torch() -> None:
    assert "torch" not in loaded("import classact.pages")
