"""From nothing to a page in two commands: wheel and source distribution in bare environments, sizes and times.

Builds both, installs each into an environment that holds nothing else, and runs the demo there, outside the repository;
with the source distribution in settings of seconds only, as ``.ci/release`` does with both:

    uv run python benchmarks/install.py --preset debug --json /tmp/install.json
    uv run python benchmarks/install.py --data a_lerobot_folder --keep runs/installed
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import parser, save

ROOT = Path(__file__).parent.parent


def main() -> None:
    arguments = parser(__doc__ or "", "install")
    arguments.add_argument("--data", help="demonstrations; without: the embedded ones, and Push-T's simulator")
    arguments.add_argument("--preset", help="of the demo")
    arguments.add_argument("--keep", type=Path, help="copy the demo's folder there")
    options = arguments.parse_args()
    options.data = None if options.data is None else str(Path(options.data).resolve())
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run("uv", "build", "--quiet", "--out-dir", str(folder / "dist"), str(ROOT), where=folder)
        (wheel,), (source,) = (list((folder / "dist").glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
        for kind, file in (("wheel", wheel), ("sdist", source)):
            preset = options.preset if kind == "wheel" else "debug"
            found[kind] = tried(file, folder / kind, options.data, preset)
            found[kind]["file_mib"] = mebibytes(file)
        if options.keep is not None:
            shutil.copytree(folder / "wheel" / "demo", options.keep)
    save(options.json, {"data": Path(options.data).name if options.data else "pusht-expert", **found})


def tried(file: Path, folder: Path, data: str | None, preset: str | None) -> dict[str, Any]:
    """Install one distribution into a bare environment and run its demo; seconds and mebibytes."""
    folder.mkdir()
    run("uv", "venv", "--quiet", "--python", sys.executable, str(folder / "bare"), where=folder)
    python = folder / "bare/bin/python"
    extra = "" if data else "[pusht]"
    begin = time.perf_counter()
    run("uv", "pip", "install", "--quiet", "--python", str(python), f"{file}{extra}", where=folder)
    installed = time.perf_counter() - begin
    site = next((folder / "bare/lib").glob("python*/site-packages"))
    gpu = [part for part in site.iterdir() if part.name.startswith(("nvidia", "triton"))]
    words = [str(folder / "bare/bin/classact"), "demo", "--out", "demo"]
    words += ["--data", data] if data else []
    words += ["--preset", preset] if preset else []
    begin = time.perf_counter()
    run(*words, where=folder)
    acted = time.perf_counter() - begin
    if not (folder / "demo/report.html").is_file():
        raise SystemExit(f"{file.name}: the demo wrote no page")
    return {
        "install_seconds": round(installed),
        "demo_seconds": round(acted),
        "installed_mib": mebibytes(site),
        "of_which_gpu_mib": sum(map(mebibytes, gpu)),
        "packages": len(list(site.glob("*.dist-info"))),
    }


def run(*words: str, where: Path) -> None:
    """A command, in a folder outside the repository, without this process's environment of Python."""
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    subprocess.run(words, cwd=where, env={**environment, "CLASSACT_CACHE": str(where / "cache")}, check=True)


def mebibytes(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return round(sum(file.stat().st_size for file in files) / 2**20)


if __name__ == "__main__":
    main()
