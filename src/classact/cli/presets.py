"""The command presets: named settings, and the objectives with their options."""

from __future__ import annotations

from dataclasses import dataclass, fields

from classact.cli.console import console


@dataclass(frozen=True)
class Presets:
    """List the named settings, and the objectives with their options."""

    def main(self) -> None:
        from rich.table import Table

        from classact.models.heads import HEADS
        from classact.objectives import OBJECTIVES
        from classact.run.presets import HEAD_PRESETS, PRESETS

        table = Table("preset", "settings", show_lines=True)
        for name, preset in PRESETS.items():
            p, r = preset.pretrain, preset.retrieval
            table.add_row(
                name,
                f"{preset.about}\n"
                f"{p.objective.describe()}: "
                f"{p.encoder.backbone} from {p.encoder.init}, images {p.encoder.image_size}, crops "
                f"{p.encoder.crop_size}\n"
                f"{p.optimizer.name} {p.optimizer.learning_rate:g}, {p.epochs:g} epochs of batches of {p.batch_size}\n"
                f"K {100 * p.similarity.quantile:g} %, k_nn {r.k}, tau_nn {r.temperature:g}"
                f" (shifted {preset.tau_shifted:g})",
            )
        console().print(table)
        heads = Table("preset of a head", "settings", show_lines=True)
        for name, head in HEAD_PRESETS.items():
            made, others = head.finetune, head.other.get("epochs", head.finetune.epochs)
            heads.add_row(
                name,
                f"{head.about}\n"
                f"{HEADS['diffusion'].config.preset(head.size).describe()}; AdamW, head {made.optimizer.head_lr:g}, "
                f"encoder {'frozen' if made.frozen else f'{made.optimizer.encoder_lr:g}'}\n"
                f"{made.epochs:g} epochs of batches of {made.batch_size} on CLASS, {others:g} on other encoders"
                + (f", {head.trained['epochs']:g} where the encoder is trained" if head.trained else "")
                + "".join(
                    f"; {times:g} times as many for {name} on a frozen one" for name, times in head.longer.items()
                ),
            )
        console().print(heads)
        objectives = Table("objective", "what it learns, and its options", show_lines=True)
        for name, entry in OBJECTIVES.items():
            config = entry.config()
            settings = [f"{f.name}={_written(getattr(config, f.name))}" for f in fields(config) if f.init]
            objectives.add_row(name, "\n".join(filter(None, (f"{config.label}: {config.about}", " ".join(settings)))))
        console().print(objectives)


def _written(value: object) -> str:
    """As it is written after --options."""
    return str(value).lower() if isinstance(value, bool) else str(value)
