"""Folders of results to HTML pages: pure drawing, nothing is computed anew."""

from classact.pages.page import build_report
from classact.pages.similarity import build_similarity_page

__all__ = ["build_report", "build_similarity_page"]
