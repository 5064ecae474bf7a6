"""A run's folder to one HTML page and one picture: pure drawing, nothing is computed anew."""

from classact.report.hero import hero_image
from classact.report.page import build_report

__all__ = ["build_report", "hero_image"]
