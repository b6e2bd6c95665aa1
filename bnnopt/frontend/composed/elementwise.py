"""Elementwise operators, sums of many operands and reductions, written out."""

from __future__ import annotations

from bnnopt.frontend.composed.body import Body, Writer, number
from bnnopt.ops.operands import Operands


def _elu(o: Operands) -> Body:
    """alpha (exp(x) - 1) below 0, and x above."""
    return _exponential("low", number("a", o.real("alpha", 1.0)), "below = Mul (m, a)")


def _celu(o: Operands) -> Body:
    """alpha (exp(x / alpha) - 1) below 0, and x above."""
    alpha = number("a", o.real("alpha", 1.0))
    return _exponential("d", f"{alpha} d = Div (low, a)", "below = Mul (m, a)")


def _selu(o: Operands) -> Body:
    """gamma alpha (exp(x) - 1) below 0, and gamma x above."""
    alpha, gamma = o.real("alpha", 1.67326319), o.real("gamma", 1.05070102)
    settings = number("a", alpha) + number("g", gamma)
    return _exponential(
        "low", settings, "below = Mul (m, a)", "s = Add (above, below) y = Mul (s, g)"
    )


def _exponential(
    power: str, before: str, below: str, after: str = "y = Add (above, below)"
) -> Body:
    """What is exp(x) - 1 below 0, where that does not overflow, and x above."""
    zero, one = number("none", 0.0), number("one", 1.0)
    return Body(f"""(x) => (y) {{ {zero} {one} low = Clip (x, , none) {before}
        e = Exp ({power}) m = Sub (e, one) {below} above = Relu (x) {after} }}""")


def _clip(o: Operands) -> Body | None:
    """Between bounds that are computed: a trained one has the gradient of what it cuts off."""
    bounds = [i for i in (1, 2) if o.has(i)]
    if all(o.array(i) is not None for i in bounds):
        return None
    steps, so_far = "", "x"
    for i, compare in ((1, "Less"), (2, "Greater")):
        if i in bounds:
            own = "y" if i == bounds[-1] else "raised"
            steps += f"is{i} = {compare} ({so_far}, b{i}) {own} = Where (is{i}, b{i}, {so_far}) "
            so_far = own
    return Body(f"(x, b1, b2) => (y) {{ {steps} }}")


def _mish(o: Operands) -> Body:
    return Body("(x) => (y) { s = Softplus (x) t = Tanh (s) y = Mul (x, t) }")


def _swish(o: Operands) -> Body:
    """x sigmoid(alpha x)."""
    alpha = number("a", o.real("alpha", 1.0))
    return Body(f"(x) => (y) {{ {alpha} u = Mul (x, a) s = Sigmoid (u) y = Mul (x, s) }}")


def _softsign(o: Operands) -> Body:
    one = number("one", 1.0)
    return Body(f"(x) => (y) {{ {one} a = Abs (x) d = Add (a, one) y = Div (x, d) }}")


def _thresholded_relu(o: Operands) -> Body:
    """x above alpha, else 0."""
    settings = number("a", o.real("alpha", 1.0)) + number("none", 0.0)
    return Body(f"(x) => (y) {{ {settings} above = Greater (x, a) y = Where (above, x, none) }}")


def _shrink(o: Operands) -> Body:
    """x - bias above lambd, x + bias below -lambd, 0 between."""
    lambd, bias = o.real("lambd", 0.5), o.real("bias", 0.0)
    settings = number("l", lambd) + number("k", -lambd) + number("c", bias) + number("none", 0.0)
    return Body(f"""(x) => (y) {{ {settings}
        is_high = Greater (x, l) high = Sub (x, c) upper = Where (is_high, high, none)
        is_low = Less (x, k) low = Add (x, c) y = Where (is_low, low, upper) }}""")


def _folded(operator: str, least: int) -> Writer:
    """An operator of many operands as one of two, from so many operands on."""

    def write(o: Operands) -> Body | None:
        if o.n_inputs < least:
            return None
        names = [f"x{i}" for i in range(o.n_inputs)]
        steps, so_far = [], "x0"
        for i, name in enumerate(names[1:-1]):
            steps.append(f"t{i} = {operator} ({so_far}, {name})")
            so_far = f"t{i}"
        last = f"{operator} ({so_far}, {names[-1]})" if len(names) > 1 else "Identity (x0)"
        return Body(f"({', '.join(names)}) => (y) {{ {' '.join(steps)} y = {last} }}")

    return write


def _mean(o: Operands) -> Body:
    names, share = ", ".join(f"x{i}" for i in range(o.n_inputs)), number("k", 1 / o.n_inputs)
    return Body(f"({names}) => (y) {{ {share} s = Sum ({names}) y = Mul (s, k) }}")


def _reduced(before: str, after: str = "") -> Writer:
    """A sum over axes of what `before` makes of x, as r; `after` makes y of it."""

    def write(o: Operands) -> Body:
        names = ("keepdims", "noop_with_empty_axes")
        options = ", ".join(f"{name} = {o.number(name, int(name == 'keepdims'))}" for name in names)
        total = f"{'r' if after else 'y'} = ReduceSum <{options}> (s, axes)"
        return Body(f"(x, axes) => (y) {{ s = {before} {total} {after} }}")

    return write


BODIES: dict[str, Writer] = {
    "Celu": _celu,
    "Clip": _clip,
    "Elu": _elu,
    "Max": _folded("Max", 3),
    "Mean": _mean,
    "Min": _folded("Min", 3),
    "Mish": _mish,
    "ReduceL1": _reduced("Abs (x)"),
    "ReduceL2": _reduced("Mul (x, x)", "y = Sqrt (r)"),
    "ReduceLogSum": _reduced("Identity (x)", "y = Log (r)"),
    "ReduceSumSquare": _reduced("Mul (x, x)"),
    "Selu": _selu,
    "Shrink": _shrink,
    "Softsign": _softsign,
    "Sum": _folded("Add", 1),
    "Swish": _swish,
    "ThresholdedRelu": _thresholded_relu,
}
