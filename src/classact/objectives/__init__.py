"""Objectives of representation learning; one file each, pure functions of features."""

from classact.objectives.soft_infonce import PAIRS, REDUCTIONS, SoftInfoNCEConfig, soft_infonce

__all__ = ["PAIRS", "REDUCTIONS", "SoftInfoNCEConfig", "soft_infonce"]
