"""Which passes, and what is kept of each value, for a memory budget or a time budget.

`choices` tries one set of passes and measures its plan, `model` is the linear program over them,
`search` lets the two agree; what they find is `bnnopt.report.spending`.
"""

from bnnopt.compiler.budget.choices import Trials
from bnnopt.compiler.budget.search import Budget, beyond, fit_budget, fit_time
from bnnopt.report.spending import Point, Spending

__all__ = ["Budget", "Point", "Spending", "Trials", "beyond", "fit_budget", "fit_time"]
