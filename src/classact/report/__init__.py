"""Folders of results to HTML pages, and a run to one picture: pure drawing, nothing is computed anew."""

from classact.report.hero import hero_image
from classact.report.page import build_report
from classact.report.similarity import build_similarity_page

__all__ = ["build_report", "build_similarity_page", "hero_image"]
