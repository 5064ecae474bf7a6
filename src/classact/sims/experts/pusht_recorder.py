"""Push-T's planner as a recorder of attempts, and which of its attempts are demonstrations."""

from __future__ import annotations

import numpy as np

from classact.sims.experts.base import Attempt
from classact.sims.experts.pusht import ExpertConfig, Solution, solve
from classact.sims.pusht import PushT

MIN_LENGTH, MAX_LENGTH = 100, 300  # shorter ones started next to the goal, longer ones wandered


class PlanRecorder:
    """Push-T's planner (:mod:`classact.sims.experts.pusht`)."""

    def __init__(self, config: ExpertConfig) -> None:
        self.config = config

    def __call__(self, seed: int) -> Attempt:
        """One attempt from the start of ``seed``; success is what :meth:`refuse` does not refuse."""
        simulator = PushT()
        solution = solve(simulator, seed, self.config)
        simulator.close()
        reason = self.refuse(solution)
        return Attempt(
            seed=seed,
            states=solution.states,
            actions=solution.actions.astype(np.float32),  # multiples of 1/8 px: exact
            proprioception=solution.states[:, :2].astype(np.float32),
            success=not reason,
            reason=reason,
        )

    def refuse(self, solution: Solution) -> str:
        """Why an attempt is no demonstration; empty where it is: placed, held, and of a usual length."""
        if not solution.placed:
            return "not placed"
        if not MIN_LENGTH <= len(solution.actions) <= MAX_LENGTH:
            return f"not {MIN_LENGTH} to {MAX_LENGTH} steps long"
        return ""

    def close(self) -> None:
        """Nothing to free: every attempt has a simulator of its own."""
