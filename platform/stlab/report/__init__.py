"""A study's results as tables, figures and one HTML page, all derived from the trial directories.

Slow imports (matplotlib, pandas, scipy, jinja2) are deferred until they are used.
"""

from stlab.report.page.joint import joint_figures
from stlab.report.page.report import report_figures, write_report
from stlab.report.statistics.across import Across, across_datasets
from stlab.report.statistics.comparisons import Comparison, compare
from stlab.report.statistics.summary import Interval, Summary, summarise
from stlab.report.tables.ablation import ablation_table, to_latex
from stlab.report.tables.across import across_frame, terminal_across
from stlab.report.tables.terminal import terminal_table

__all__ = [
    "Across",
    "Comparison",
    "Interval",
    "Summary",
    "ablation_table",
    "across_datasets",
    "across_frame",
    "compare",
    "joint_figures",
    "report_figures",
    "summarise",
    "terminal_across",
    "terminal_table",
    "to_latex",
    "write_report",
]
