"""Rollouts with intervals, and probes of representations without rollouts."""
