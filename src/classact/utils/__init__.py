"""Shared basics: files, locks, progress, processes, statistics."""
