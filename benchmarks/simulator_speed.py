"""Steps and frames a second of Push-T, in one process, and beside the package that ours builds on.

The MuJoCo tasks are measured by benchmarks/rendering.py and benchmarks/experts.py.

uv run python benchmarks/simulator_speed.py
"""

from __future__ import annotations

import statistics

import gymnasium
import numpy as np

from classact.sims import make_simulator
from common import parser, save, seconds


def main() -> None:
    arguments = parser(__doc__ or "", "simulator_speed")
    arguments.add_argument("--steps", type=int, default=500)
    arguments.add_argument("--repeats", type=int, default=7)
    options = arguments.parse_args()
    import gym_pusht  # noqa: F401  (registers the environment)

    rng = np.random.default_rng(0)
    actions = rng.uniform(50, 450, (options.steps, 2)).astype(np.float32)
    plain = gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels").unwrapped
    result: dict[str, dict[str, float]] = {}
    for name in ("pusht",):
        sim = make_simulator(name)

        def ours_state(sim=sim) -> None:
            sim.reset(0)
            for action in actions:
                sim.step(action)

        def ours_pixels(sim=sim) -> None:
            sim.reset(0)
            for action in actions:
                sim.step(action)
                sim.observe()

        def gym_pixels() -> None:
            plain.reset(seed=0)
            for action in actions:
                plain.step(action)

        rows: dict[str, list[float]] = {"steps": [], "steps_with_image": [], "gym_steps_with_image": []}
        for _ in range(options.repeats):
            for key, function in zip(rows, (ours_state, ours_pixels, gym_pixels), strict=True):
                rows[key].append(options.steps / seconds(function))
        result[name] = {f"{key}_per_second": statistics.median(values) for key, values in rows.items()}
        result[name]["ratio_to_gym_with_image"] = (
            result[name]["steps_with_image_per_second"] / result[name]["gym_steps_with_image_per_second"]
        )
        sim.close()
    save(options.json, {"steps": options.steps, "repeats": options.repeats, "image_size": 96, "simulators": result})


if __name__ == "__main__":
    main()
