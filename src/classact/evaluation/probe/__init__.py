"""What a representation is worth, measured without rollouts."""

from classact.evaluation.probe.latents import Encoded, ProbeConfig, probe_latents
from classact.evaluation.probe.views import probe_views

__all__ = ["Encoded", "ProbeConfig", "probe_latents", "probe_views"]
