"""Published tables as data: values as printed, and the printed facts about data, protocol and methods."""

from stlab.papers.coverage import Cell, coverage
from stlab.papers.paper import DatasetFacts, MethodFacts, Paper, TableFacts, load_paper, shipped_papers

__all__ = ["Cell", "DatasetFacts", "MethodFacts", "Paper", "TableFacts", "coverage", "load_paper", "shipped_papers"]
