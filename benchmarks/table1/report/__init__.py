"""The results of benchmarks/table1 as text, Markdown and one HTML page, in the paper's layout."""

from table1.report.markdown import comparison_markdown
from table1.report.page import build_comparison
from table1.report.results import Cell, Results, read_results
from table1.report.text import comparison_text

__all__ = ["Cell", "Results", "build_comparison", "comparison_markdown", "comparison_text", "read_results"]
