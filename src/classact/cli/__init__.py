"""The commands: a dataclass of flags each, whose ``main`` does the work and imports what it needs."""

from __future__ import annotations

COMMANDS: dict[str, str] = {
    "demo": "classact.cli.runs:Demo",
    "pretrain": "classact.cli.runs:Pretrain",
    "finetune": "classact.cli.finetune:Finetune",
    "evaluate": "classact.cli.runs:Evaluate",
    "report": "classact.cli.runs:Report",
    "latent-actions": "classact.cli.latent_actions:LatentActions",
    "compare": "classact.cli.compare:Compare",
    "probe": "classact.cli.probe:Probe",
    "similarity": "classact.cli.similarity:Similarity",
    "data info": "classact.cli.data:DataInfo",
    "data validate": "classact.cli.data:DataValidate",
    "data preview": "classact.cli.data:DataPreview",
    "data convert": "classact.cli.data:DataConvert",
    "data cache": "classact.cli.data:DataCache",
    "data generate": "classact.cli.data:DataGenerate",
    "export hub": "classact.cli.export:ExportHub",
    "export onnx": "classact.cli.export:ExportOnnx",
    "export lerobot": "classact.cli.export:ExportLerobot",
    "presets": "classact.cli.presets:Presets",
    "doctor": "classact.cli.doctor:Doctor",
}
"""Name, of one word or two -> "module:class" of its flags; ``main()`` returns the exit status (None: 0)."""
