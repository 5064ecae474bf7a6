"""Scripted experts and the demonstrations they make."""
