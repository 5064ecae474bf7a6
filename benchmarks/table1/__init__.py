"""The paper's table 1 as a command: every representation under one protocol, resumable cell by cell.

methods.py    what can stand in a row, and how it is written
grid.py       which cells there are, and the protocol that they share
cells.py      one cell: train, choose, evaluate, record
runner.py     all of them, in order, each kept as soon as it is done
"""

from table1.grid import Cell, Protocol, plan, with_random
from table1.methods import METHODS, Method, parse_method
from table1.runner import run_table

__all__ = ["METHODS", "Cell", "Method", "Protocol", "parse_method", "plan", "run_table", "with_random"]
