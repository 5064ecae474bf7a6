"""What a representation is worth, measured without rollouts."""

from classact.probe.latents import Encoded, ProbeConfig, probe_latents
from classact.probe.run import ENCODERS, flat_metrics, probe_file, probe_run, write_probe
from classact.probe.views import probe_views

__all__ = [
    "ENCODERS",
    "Encoded",
    "ProbeConfig",
    "flat_metrics",
    "probe_file",
    "probe_latents",
    "probe_run",
    "probe_views",
    "write_probe",
]
