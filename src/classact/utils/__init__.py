"""What everything else stands on: files, locks, progress, processes, statistics."""
