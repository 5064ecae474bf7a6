from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "classact"

LEVELS: tuple[tuple[str, ...], ...] = (
    ("errors", "rotations", "actions", "schema", "types"),
    (
        *("progress", "statistics", "machine", "interruptions", "normalize", "storage", "tsne", "optim", "augment"),
        *("labels", "windows", "images", "video", "runs", "checkpoints", "encoders", "batches", "objectives"),
        *("ranks", "similarity", "lowdim", "feeding", "trackers", "engine", "heads", "language"),
    ),
    ("readers", "policies", "control", "sims"),
    (
        "frames",
        "training",
        "finetuning",
        "rollout",
        "presets",
        "doctor",
        "gallery",
        "analysis",
        "recording",
        "rundata",
        "evaluation",
        "pipeline",
        "probe",
        "head_pipeline",
        "survey",
        "bench",
    ),
    ("report",),
    ("commands", "cli", "__main__"),
)
"""Modules and packages by level. One imports from lower levels, and within its level from those listed before it.

A new module goes into the lowest level whose members it needs none of, behind those of its level that it imports.
"""

STRANGERS = (("policies", "sims"),)
"""Never import each other, in either direction."""

HEAVY = (
    *("torch", "numba", "plotly", "zarr", "gym_pusht", "openTSNE", "av", "timm", "scipy", "pygame", "safetensors"),
    *("h5py", "mujoco"),
)
POSITION = {name: (level, place) for level, names in enumerate(LEVELS) for place, name in enumerate(names)}


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
            # "from classact import analysis" imports a module, "from classact.errors import DataError" a name of one.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(name if name in FILES else str(node.module), node.lineno) for name in names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
    return [(name, line) for name, line in found if name.split(".")[0] == "classact"]


def component(module: str) -> str:
    """``classact.sims.pusht`` -> ``sims``; the package itself, which re-exports level 0, is empty."""
    return "" if module == "classact" else module.split(".")[1]


def test_every_module_has_a_level() -> None:
    found = {component(name) for name in FILES} - {""}
    assert not found - POSITION.keys(), (
        f"{sorted(found - POSITION.keys())} have no level: add them to LEVELS in {__file__}, in the lowest level whose "
        f"members they import none of, behind those of that level that they import."
    )
    assert not POSITION.keys() - found, f"{sorted(POSITION.keys() - found)} are gone: remove them from LEVELS."


@pytest.mark.parametrize("module", FILES)
def test_imports_point_down(module: str) -> None:
    own = component(module)
    for name, line in imported(FILES[module]):
        other = component(name)
        if own == "":
            assert POSITION[other][0] == 0, f"{FILES[module]}, line {line}: the package itself re-exports level 0 only."
        elif other not in ("", own):
            assert POSITION[other] < POSITION[own], (
                f"{FILES[module]}, line {line}: {own} (level {POSITION[own][0]}) imports {other} (level "
                f"{POSITION[other][0]}). Data flow one way: move what both need into a lower level."
            )


@pytest.mark.parametrize(("one", "two"), STRANGERS)
def test_strangers_do_not_import_each_other(one: str, two: str) -> None:
    for module, path in FILES.items():
        for name, line in imported(path):
            assert {component(module), component(name)} != {one, two}, (
                f"{path}, line {line}: {component(module)} imports {component(name)}. Anything that works with both "
                f"belongs into a higher level."
            )


def test_the_check_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("import os\ndef f():\n    from classact import analysis\n    import classact.rollout\n")
    assert imported(file) == [("classact.analysis", 3), ("classact.rollout", 4)]


def loaded(code: str) -> list[str]:
    """Which of HEAVY a fresh interpreter holds after ``code``."""
    program = f"import sys\n{code}\nprint('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    return run.stdout.rsplit("LOADED", 1)[1].split()


@pytest.mark.parametrize(
    "code",
    [
        "import classact",
        "import classact.cli; assert classact.cli.main(['--help']) == 0",
        "import classact.cli; assert classact.cli.main(['--version']) == 0",
        "import classact.sims.worker, classact.frames, classact.runs, classact.readers",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(code: str) -> None:
    assert loaded(code) == []


def test_a_simulator_process_loads_its_simulator_and_nothing_else() -> None:
    # Each rollout process runs this before its first step.
    code = "import classact.__main__, classact.sims.worker, classact.sims; classact.sims.make_simulator('pusht')"
    found = loaded(code + "; assert 'classact.cli' not in sys.modules and 'tyro' not in sys.modules")
    assert set(found) <= {"gym_pusht", "pygame"}


def test_pages_are_drawn_without_torch() -> None:
    assert "torch" not in loaded("import classact.report, classact.report.comparison")
