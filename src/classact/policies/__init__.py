"""Policies: observations in, action chunks out."""

from classact.policies.base import Policy
from classact.policies.latents import ImageLatents, StateLatents
from classact.policies.retrieval import Neighbors, RetrievalConfig, RetrievalPolicy, retrievable

__all__ = ["ImageLatents", "Neighbors", "Policy", "RetrievalConfig", "RetrievalPolicy", "StateLatents", "retrievable"]
