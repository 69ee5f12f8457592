"""A study's results as tables, figures and one page: views of the trial directories, nothing more.

Slow imports (matplotlib, pandas, scipy, jinja2) wait until they are used.
"""

from stlab.report.page.joint import joint_figures
from stlab.report.page.study import report_figures, write_report
from stlab.report.statistics.comparisons import Comparison, compare
from stlab.report.statistics.summary import Interval, Summary, summarise
from stlab.report.tables.ablation import ablation_table, terminal_table, to_latex

__all__ = [
    "Comparison",
    "Interval",
    "Summary",
    "ablation_table",
    "compare",
    "joint_figures",
    "report_figures",
    "summarise",
    "terminal_table",
    "to_latex",
    "write_report",
]
