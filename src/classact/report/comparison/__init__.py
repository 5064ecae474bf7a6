"""The results of ``classact bench table1`` as text, Markdown and one HTML page, in the paper's layout."""

from classact.report.comparison.markdown import comparison_markdown
from classact.report.comparison.page import build_comparison
from classact.report.comparison.results import Cell, Results, read_results
from classact.report.comparison.text import comparison_text

__all__ = ["Cell", "Results", "build_comparison", "comparison_markdown", "comparison_text", "read_results"]
