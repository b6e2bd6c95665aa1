"""The choice as a linear program over binary variables, for HiGHS.

Variables say which choices are taken. At every node of the step the bytes alive are those of the
smallest version, and more for each saving that is not taken:

    minimise    price . x
    subject to  base[t] + sum over i of extra[i, t] * (1 - x[i]) <= budget   at every node t
                sum over i outside of S of x[i] >= 1         for every S that was tried in vain

The plan decides: what it does not fit becomes such an S, and is solved again. As more savings never
need more memory, a set that does not fit rules out all its subsets.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from bnnopt.errors import UsageError

Floats = NDArray[np.float64]
UNIT = float(1 << 20)  # MiB: solvers want numbers near 1
SOLVING_S = 2.0  # bound of one solution


def is_available() -> bool:
    """Whether the solver is installed."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        return False
    return True


def cheapest(
    price: Floats,
    base: Floats,
    extra: Floats,
    budget: float,
    in_vain: Sequence[Collection[int]] = (),
    seconds: float = SOLVING_S,
) -> list[int] | None:
    """The savings to take: the cheapest set that fits.

    Parameters
    ----------
    price : ndarray of float64, shape (n,)
        Of each saving.
    base : ndarray of float64, shape (t,)
        Bytes alive at each node with all savings.
    extra : ndarray of float64, shape (n, t)
        Bytes more at each node where a saving is not taken.
    budget : float
        Bytes.
    in_vain : sequence of collections of int
        Sets that do not fit, whatever the model says.
    seconds : float
        Bound of the solver's time.

    Returns
    -------
    list of int or None
        None where nothing fits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    n = len(price)
    unique, rows = np.unique(extra.T, axis=0, return_inverse=True)
    highest = np.full(len(unique), -np.inf)
    np.maximum.at(highest, rows.ravel(), base)
    needed = highest + unique.sum(axis=1) - budget
    constraints = [LinearConstraint(unique / UNIT, lb=needed / UNIT)]
    for taken in in_vain:
        outside = np.array([float(i not in taken) for i in range(n)])
        if not outside.any():
            return None
        constraints.append(LinearConstraint(outside[None], lb=1))
    found = milp(
        price / price.max(), constraints=constraints, integrality=np.ones(n), bounds=Bounds(0, 1),
        options={"time_limit": seconds},
    )  # fmt: skip
    return None if found.x is None else [i for i in range(n) if found.x[i] > 0.5]


def smallest(
    price: Floats, base: Floats, extra: Floats, limit: float, seconds: float = SOLVING_S
) -> list[int]:
    """The savings to take: those that need the least memory for at most `limit` of their price."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    n = len(price)
    unique, rows = np.unique(extra.T, axis=0, return_inverse=True)
    highest = np.full(len(unique), -np.inf)
    np.maximum.at(highest, rows.ravel(), base)
    over = np.hstack([unique / UNIT, np.ones((len(unique), 1))])  # the last variable: the peak
    whole = price.max()
    constraints = [
        LinearConstraint(over, lb=(highest + unique.sum(axis=1)) / UNIT),
        LinearConstraint(np.append(price / whole, 0.0)[None], ub=limit / whole),
    ]
    goal = np.append(1e-6 * price / whole, 1.0)
    found = milp(
        goal, constraints=constraints, integrality=np.append(np.ones(n), 0.0),
        bounds=Bounds(0, np.append(np.ones(n), np.inf)), options={"time_limit": seconds},
    )  # fmt: skip
    if found.x is None:
        raise UsageError("--time-budget: no choice is as fast; give a larger one")
    return [i for i in range(n) if found.x[i] > 0.5]
