"""A run: its folder, settings, data and stages."""
