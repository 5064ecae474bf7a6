"""Learn a representation from the embedded Push-T demonstrations and act with it. About seven minutes on two cores.

uv run python examples/pusht_in_ten_lines.py
"""

from pathlib import Path

from classact.report import build_report
from classact.run.folder import Run
from classact.run.presets import from_preset
from classact.run.pretrain import Pipeline

if __name__ == "__main__":  # rollouts start worker processes, which import this file
    pipeline = Pipeline(Run(Path("runs/example")), from_preset("pusht-demo"))
    results = pipeline.evaluate()
    pipeline.analyze(results["class"])
    solved = sum(result.success["coverage>0.90"] for result in results["class"])
    print(f"{solved} of {len(results['class'])} unseen starts solved; see {build_report(pipeline.run.root)}")
