"""The README's first command on a fresh clone with an empty image cache: does it work, how long, what comes out.

uv run python benchmarks/fresh_demo.py --keep runs/demo
uv run python benchmarks/hero.py runs/demo docs/pusht.png
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from common import parser, save

ROOT = Path(__file__).parent.parent


def main() -> None:
    arguments = parser(__doc__ or "", "demo")
    arguments.add_argument("--keep", type=Path, help="copy the demo's folder there")
    options = arguments.parse_args()
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    command = next(line for line in readme if line.startswith("python3 -m pip install uv && ")).split("#")[0].strip()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "classact"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = {**os.environ, "CLASSACT_CACHE": str(Path(folder) / "cache")}
        environment.pop("VIRTUAL_ENV", None)
        begin = time.perf_counter()
        subprocess.run(["bash", "-c", command], cwd=clone, env=environment, check=True)
        seconds = time.perf_counter() - begin
        rows = json.loads((clone / "demo/summary.json").read_text(encoding="utf-8"))
        timings = json.loads((clone / "demo/config.json").read_text(encoding="utf-8"))["timings"]
        for head in sorted((clone / "demo/heads").glob("*/config.json")):
            spent = json.loads(head.read_text(encoding="utf-8"))["timings"]
            timings |= {f"{head.parent.name}: {name}": seconds for name, seconds in spent.items()}
        if options.keep is not None:
            shutil.copytree(clone / "demo", options.keep)
    save(options.json, {"command": command, "seconds_in_all": round(seconds), "timings": timings, "rows": rows})


if __name__ == "__main__":
    main()
