"""The results of benchmarks/table1 as Markdown and one HTML page, in the paper's layout."""

from table1.report.markdown import comparison_markdown
from table1.report.page import build_comparison
from table1.report.results import Cell, Results, read_results

__all__ = ["Cell", "Results", "build_comparison", "comparison_markdown", "read_results"]
