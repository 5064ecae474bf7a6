"""Folders of results to HTML pages: pure drawing, nothing is computed anew."""

from classact.report.page import build_report
from classact.report.similarity import build_similarity_page

__all__ = ["build_report", "build_similarity_page"]
