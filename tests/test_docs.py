"""What README and docs say must hold."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import classact
from classact.cli.engine import ENGINE
from classact.cli.finetune import Finetune
from classact.cli.flags import Settings, parse
from classact.cli.main import COMMANDS
from classact.cli.runs import RUN, Pretrain
from classact.utils.lazy import resolve

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_of_the_readme_come_from_the_results_files() -> None:
    done = subprocess.run(
        [sys.executable, "readme_table.py", "--check"], cwd=ROOT / "benchmarks", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_commands_of_the_readme_exist() -> None:
    named = re.findall(r"uv run classact (data \w+|\w+)", README)
    assert len(named) >= 6
    assert set(named) <= set(COMMANDS)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = [line for line in README.splitlines() if line.startswith("python3 -m pip install uv && ")]
    assert len(commands) == 2
    command = commands[1].split("&&")[1].split("#")[0].strip()
    assert re.search(rf"^{re.escape(command)}$", (ROOT / ".ci/run").read_text(encoding="utf-8"), re.MULTILINE)


def test_python_of_the_readme_is_the_api() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    tree = ast.parse(block)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    used = [call for call in calls if ast.unparse(call.func).startswith("classact.")]
    assert len(used) >= 5
    for call in used:
        signature = inspect.signature(getattr(classact, ast.unparse(call.func).removeprefix("classact.")))
        signature.bind(*call.args, **{str(keyword.arg): keyword.value for keyword in call.keywords})


PAGES = [
    *("README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/policies.md", "docs/rand-color.md"),
    *("docs/similarity.md", "docs/simulators.md", "docs/objectives.md", "docs/probe.md"),
    *("docs/comparison.md", "docs/commands.md"),
    *("docs/results.md", "docs/index.md", "docs/integrations.md"),
]


def commands(page: str) -> list[list[str]]:
    """Words of every command of classact in the page's blocks of code."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    found = [part for line in lines for part in re.split(r"&&|;", line.partition("#")[0])]
    return [shlex.split(call[1]) for part in found if (call := re.search(r"\bclassact ((?!\[).+)", part))]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_pages_can_be_read(page: str) -> None:
    for words in commands(page):
        length = 2 if " ".join(words[:2]) in COMMANDS else 1
        parse(resolve(COMMANDS[" ".join(words[:length])]), words[length:], "classact")


def test_short_names_of_the_page_are_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    table = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    named = set(re.findall(r"--[a-z][\w-]*", table))
    short = [of.short.values() for of in (RUN, ENGINE, Finetune.__dataclass_fields__["training"].metadata[Settings])]
    assert {f"--{name}" for names in short for name in names} <= named
    for command, words in ((Pretrain, []), (Finetune, ["--head", "diffusion"])):  # whose settings are the most
        with pytest.raises(SystemExit):
            parse(command, [*words, "--help"], "classact")
    printed = capsys.readouterr().out
    assert [name for name in named if f"{name} " not in printed and f"{name}," not in printed] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_named_in_pages_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"


def test_folders_in_the_architecture_page_are_those_that_there_are() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    for module in sorted((ROOT / "src/classact").iterdir()):
        if module.name.startswith(("_", ".")) or module.name in ("assets", "py.typed"):
            continue
        assert f"`{module.stem}`" in page or f"`{module.stem}/`" in page, (
            f"{module.name} is not in the table of folders"
        )
    for named in re.findall(r"`((?:\w+/)+\w+\.py)`", page):
        assert any((ROOT / place / named).exists() for place in ("src/classact", ".")), f"{named} is not there"


def test_links_of_the_readme_lead_into_the_repository_from_outside() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    text = README
    for rule in pyproject["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    repository = pyproject["project"]["urls"]["Repository"]
    found = re.findall(r"\]\((.*?)\)", text)
    inside = [link.removeprefix(repository + "/") for link in found if link.startswith(repository)]
    assert len(inside) >= 8
    assert all(link.startswith("https://") for link in found)
    for link in inside:
        assert (ROOT / re.sub("^(blob|raw)/main/", "", link).partition("#")[0]).is_file(), link


def test_pages_of_the_site_are_all_listed() -> None:
    listed = (ROOT / "docs/index.md").read_text(encoding="utf-8").splitlines()
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - {"index"} <= set(listed)
