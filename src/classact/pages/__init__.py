"""Folders of results to HTML pages: pure drawing, nothing is computed anew."""

from classact.pages.latent_actions import build_latent_actions_page
from classact.pages.page import build_report
from classact.pages.similarity import build_similarity_page

__all__ = ["build_latent_actions_page", "build_report", "build_similarity_page"]
