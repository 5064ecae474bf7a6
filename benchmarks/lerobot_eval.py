"""Do LeRobot's own commands and classact agree on how good a policy is? Push-T, by LeRobot's criterion.

    .ci/lerobot makes an environment that has both; from classact's own:
    uv run python benchmarks/lerobot_eval.py RUN --policies retrieval mlp-run --label "speed 1" --episodes 150

Each policy of a run is exported, evaluated by ``lerobot-eval`` (gym-pusht, 300 steps, coverage above 0.95), and by
classact: from its own initial states, and from those that LeRobot's seeds give in gym-pusht, episode by episode. What
differs then is a pixel or two; --further does the same from more states, in gym-pusht without LeRobot's commands.
"""

from __future__ import annotations

import subprocess
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gym_pusht  # noqa: F401 (registers itself)
import gymnasium
import numpy as np
from gymnasium.utils import seeding

from classact.data.types import Observation
from classact.evaluation.config import FIRST_SEED
from classact.evaluation.lerobot import Episodes, lerobot_differences, lerobot_rows, read_eval_info
from classact.policies.control import Controller
from classact.run.export import export_lerobot
from classact.run.folder import Run
from classact.run.load import load_policy
from classact.sims.pusht import PushT, start_state
from classact.utils.statistics import wilson_interval
from common import keep, kept, mcnemar_p, parser

SEED = 1000  # lerobot-eval's default, plus one for each episode
STEPS = 300
CRITERION = "cov>=0.95@300"


def lerobots_start(seed: int) -> np.ndarray[Any, Any]:
    """(5,) the state that gym-pusht 0.1.6 and later draws for ``seed``."""
    rng, _ = seeding.np_random(seed)
    place = [rng.integers(*limits) for limits in ((50, 450), (50, 450), (100, 400), (100, 400))]
    return np.array([*place, rng.uniform(-np.pi, np.pi)], np.float64)


def successes(policy: Any, starts: list[np.ndarray[Any, Any]]) -> tuple[list[bool], list[float]]:
    """Of each episode: whether it succeeded, and its largest coverage."""
    worlds = [PushT() for _ in starts]
    for world, start in zip(worlds, starts, strict=True):
        world._world._setup()
        world._world._set_state(start.tolist())  # as gym-pusht's reset does: the angle last, and one substep
    controller = Controller(policy)
    controller.reset(len(worlds))
    best = np.zeros(len(worlds))
    seen = [[world.observe()] for world in worlds]
    step = 0
    while step < STEPS:
        chunks = controller.act(seen).chunk[:, : STEPS - step]
        seen = [[] for _ in worlds]
        for index, (world, chunk) in enumerate(zip(worlds, chunks, strict=True)):
            for number, action in enumerate(chunk):
                best[index] = max(best[index], world.step(action)["coverage"])
                if number == len(chunk) - 1:
                    seen[index].append(world.observe())
        step += chunks.shape[1]
    return [bool(value >= 0.95) for value in best], [float(value) for value in best]


def successes_in_gym(policy: Any, seeds: list[int]) -> list[bool]:
    """As ``lerobot-eval`` has it, without LeRobot: gym-pusht's own states and pictures."""
    worlds = [gymnasium.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos") for _ in seeds]
    seen = [[_seen(world.reset(seed=seed)[0])] for world, seed in zip(worlds, seeds, strict=True)]
    controller = Controller(policy)
    controller.reset(len(worlds))
    done, step = [False] * len(worlds), 0
    while step < STEPS:
        chunks = controller.act(seen).chunk[:, : STEPS - step]
        for index, (world, chunk) in enumerate(zip(worlds, chunks, strict=True)):
            for action in chunk:
                if not done[index]:
                    found, *_, info = world.step(action)
                    seen[index], done[index] = [_seen(found)], bool(info["is_success"])
        step += chunks.shape[1]
    return done


def _seen(found: Any) -> Observation:
    return Observation({"top": found["pixels"]}, found["agent_pos"].astype(np.float32))


def further(policy: Any, first: int, count: int) -> dict[str, Any]:
    """Whether pictures that differ in a pixel or two make a difference, from more of LeRobot's initial states."""
    seeds = list(range(first, first + count))
    theirs = np.array(successes_in_gym(policy, seeds))
    ours = np.array(successes(policy, [lerobots_start(seed) for seed in seeds])[0])
    won, lost = int((theirs > ours).sum()), int((theirs < ours).sum())
    found = {"gym-pusht": int(theirs.sum()), "classact": int(ours.sum()), "won": won, "lost": lost}
    return {"episodes": count, **found, "p": mcnemar_p(won, lost)}


def measured(run: Run, name: str, episodes: int, others: int, commands: Path, work: Path) -> dict[str, Any]:
    """One policy, by both."""
    head = None if name == "retrieval" else name
    out = work / f"eval-{name}"
    if not out.exists():
        exported = export_lerobot(run, work / f"policy-{name}", head=head)
        words = [f"--policy.path={exported}", "--policy.device=cpu", "--env.type=pusht", f"--seed={SEED}"]
        words += [f"--eval.n_episodes={episodes}", "--eval.batch_size=50", "--eval.use_async_envs=false"]
        subprocess.run([str(commands / "lerobot-eval"), *words, f"--output_dir={out}"], check=True, capture_output=True)
    (theirs,) = read_eval_info(out)
    policy: Any = load_policy(run if head is None else run.head(head))
    same, largest = successes(policy, [lerobots_start(SEED + i) for i in range(episodes)])
    own, _ = successes(policy, [start_state(FIRST_SEED + i) for i in range(episodes)])
    found = lerobot_rows("lerobot-eval", [theirs])[0]
    zeros = (0.0,) * episodes
    paired = lerobot_differences(
        {
            "classact": [Episodes("", tuple(same), zeros, zeros)],
            "lerobot-eval": [Episodes("", theirs.successes, zeros, zeros)],
        },
        paired=True,
    )[0]
    low, high = wilson_interval(sum(own), episodes)
    shared_low, shared_high = wilson_interval(sum(same), episodes)
    more = {} if not others else {"further": further(policy, SEED + episodes, others)}
    return {
        **more,
        "episodes": episodes,
        "lerobot-eval": found.successes,
        "same initial states": {"successes": sum(same), "low": shared_low, "high": shared_high},
        "own initial states": {"successes": sum(own), "low": low, "high": high},
        "difference": {"won": paired.won, "lost": paired.lost, "p": paired.p, **asdict(paired.difference)},
        "largest difference of a reward": float(
            np.abs(np.minimum(np.array(largest) / 0.95, 1) - np.array(theirs.max_rewards)).max()
        ),
        "acting": {"chunk_length": policy.spec.chunk_length, "speed": policy.spec.speed},
    }


def main() -> None:
    arguments = parser(__doc__ or "", "lerobot_eval")
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--policies", nargs="+", default=["retrieval"], help="retrieval, or heads of the run")
    arguments.add_argument("--lerobot", type=Path, default=Path(".venv-lerobot/bin"))
    arguments.add_argument("--episodes", type=int, default=50)
    arguments.add_argument("--further", type=int, default=0, help="more episodes, in gym-pusht without LeRobot")
    arguments.add_argument("--label", default="", help="behind the policies' names in the results, to tell runs apart")
    arguments.add_argument("--work", type=Path, help="keep exports and LeRobot's results here, and continue with them")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        for name in options.policies:
            key = name + (f", {options.label}" if options.label else "")
            if key not in kept(options.json, "policies"):
                row = measured(Run(options.run), name, options.episodes, options.further, options.lerobot, work)
                keep(options.json, "policies", key, row, criterion=CRITERION)
                print(name, row)


if __name__ == "__main__":
    main()
