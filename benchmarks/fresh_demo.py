"""The README's first command on a fresh clone with an empty image cache: does it work, how long, what comes out.

uv run python benchmarks/fresh_demo.py
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

from common import parser, save

ROOT = Path(__file__).parent.parent


def main() -> None:
    options = parser(__doc__ or "", "demo").parse_args()
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
    save(options.json, {"command": command, "seconds_in_all": round(seconds), "timings": timings, "rows": rows})


if __name__ == "__main__":
    main()
