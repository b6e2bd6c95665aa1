"""LSTM, GRU and RNN, written out step by step.

One product makes the gates of the input for all steps; a step then adds what the state gives.
Formulas and the order of the gates are those of the ONNX standard.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from bnnopt.frontend.composed.body import Body, Writer, ints
from bnnopt.ops.operands import Operands

_ACTIVATIONS = ("Tanh", "Sigmoid", "Relu", "Softsign", "Softplus")


@dataclass(frozen=True)
class Kind:
    """One of the three operators.

    Attributes
    ----------
    gates : int
        Rows of the weights, in hidden sizes.
    activations : tuple of str
        The default of one direction.
    step : callable
        From a `Direction` and the names of the gates of the input at a step and of the states
        (None before the first) to the statements and the names of the new states.
    states : int
        One, or two with a cell.
    """

    gates: int
    activations: tuple[str, ...]
    step: Callable[[Direction, int, list[str | None]], tuple[str, list[str]]]
    states: int = 1


@dataclass(frozen=True)
class Direction:
    """One direction of a node; its values end in its number."""

    o: Operands
    number: int
    hidden: int
    activations: tuple[str, ...]

    def name(self, base: str, step: int) -> str:
        """A value of this direction and step."""
        return f"{base}{self.number}_{step}"

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias for the input and one for the state."""
        return self.o.has(3)

    def recurrent(self, out: str, state: str, weight: str, bias: str | None) -> str:
        """The product of a state (N, H) and rows of the recurrent weight, and a bias if any."""
        tail = f", {bias}{self.number}" if bias is not None and self.has_bias else ""
        return f"{out} = Gemm <transB = 1> ({state}, {weight}{self.number}{tail})\n"


def _lstm(d: Direction, step: int, states: list[str | None]) -> tuple[str, list[str]]:
    """Gates i, o, f, g: c = f c + i g, h = o tanh(c); peepholes add p c to i, f and o."""
    f, g, h = d.activations
    i_, o_, f_, g_, c, y = (d.name(base, step) for base in ("i", "o", "f", "g", "c", "h"))
    hidden, cell = states
    coupled = bool(d.o.number("input_forget", 0))
    gates, text = d.name("x", step), ""
    if hidden is not None:
        text += d.recurrent(d.name("r", step), hidden, "R", None)
        text += f"{d.name('z', step)} = Add ({gates}, {d.name('r', step)})\n"
        gates = d.name("z", step)
    pieces = ", ".join(f"{name}_" for name in (i_, o_, f_, g_))
    text += f"{pieces} = Split <axis = 1, num_outputs = 4> ({gates})\n"
    text += _peephole(d, f"{i_}_", f"{i_}p", "pi", cell) + _peephole(
        d, f"{f_}_", f"{f_}p", "pf", cell
    )
    text += f"{i_} = {f} ({i_}p)\n {g_} = {g} ({g_}_)\n"
    if cell is None:
        text += f"{c} = Mul ({i_}, {g_})\n"
    else:
        text += f"{f_}1 = Constant <value_float = 1.0> ()\n" if coupled else ""
        text += f"{f_} = " + (f"Sub ({f_}1, {i_})" if coupled else f"{f} ({f_}p)")
        text += f"\nk{c} = Mul ({f_}, {cell}) n{c} = Mul ({i_}, {g_}) {c} = Add (k{c}, n{c})\n"
    text += _peephole(d, f"{o_}_", f"{o_}p", "po", c)
    text += f"{o_} = {f} ({o_}p) t{c} = {h} ({c}) {y} = Mul ({o_}, t{c})\n"
    return text, [y, c]


def _peephole(d: Direction, gate: str, out: str, weight: str, cell: str | None) -> str:
    if not d.o.has(7) or cell is None:
        return f"{out} = Identity ({gate})\n"
    return f"m{out} = Mul ({weight}{d.number}, {cell}) {out} = Add ({gate}, m{out})\n"


def _gru(d: Direction, step: int, states: list[str | None]) -> tuple[str, list[str]]:
    """Gates z, r and the candidate n: h = (1 - z) n + z h = n + z (h - n)."""
    f, g = d.activations
    z, r, n, y = (d.name(base, step) for base in ("z", "r", "n", "h"))
    (hidden,) = states
    text = f"{z}x, {r}x, {n}x = Split <axis = 1, num_outputs = 3> ({d.name('x', step)})\n"
    if hidden is None:
        return text + _gru_start(d, step), [y]
    text += d.recurrent(f"{z}h", hidden, "Rzr", "bzr")
    text += f"{z}i, {r}i = Split <axis = 1, num_outputs = 2> ({z}h)\n"
    text += f"{z}s = Add ({z}x, {z}i) {z} = {f} ({z}s) {r}s = Add ({r}x, {r}i) {r} = {f} ({r}s)\n"
    if d.o.number("linear_before_reset", 0):
        text += d.recurrent(f"{n}h", hidden, "Rn", "bn") + f"{n}i = Mul ({r}, {n}h)\n"
    else:
        text += f"{n}h = Mul ({r}, {hidden})\n" + d.recurrent(f"{n}i", f"{n}h", "Rn", "bn")
    text += f"{n}s = Add ({n}x, {n}i) {n} = {g} ({n}s)\n"
    return text + f"{y}d = Sub ({hidden}, {n}) {y}z = Mul ({z}, {y}d) {y} = Add ({n}, {y}z)\n", [y]


def _gru_start(d: Direction, step: int) -> str:
    """From a state of zeros: h = n - z n."""
    f, g = d.activations
    z, r, n, y = (d.name(base, step) for base in ("z", "r", "n", "h"))
    if not d.has_bias:
        text = f"{z}s = Identity ({z}x) {n}s = Identity ({n}x)\n"
    else:
        late = d.o.number("linear_before_reset", 0)
        text = f"{z}b, {r}b = Split <axis = 0, num_outputs = 2> (bzr{d.number})\n"
        text += f"{z}s = Add ({z}x, {z}b)\n"
        text += (
            f"{r}s = Add ({r}x, {r}b) {r} = {f} ({r}s) {n}i = Mul ({r}, bn{d.number})\n"
            if late
            else ""
        )
        text += f"{n}s = Add ({n}x, {f'{n}i' if late else f'bn{d.number}'})\n"
    return text + f"{z} = {f} ({z}s) {n} = {g} ({n}s) {y}z = Mul ({z}, {n}) {y} = Sub ({n}, {y}z)\n"


def _rnn(d: Direction, step: int, states: list[str | None]) -> tuple[str, list[str]]:
    """h = f(x W + h R + b)."""
    (hidden,), y, gates, text = states, d.name("h", step), d.name("x", step), ""
    if hidden is not None:
        text = d.recurrent(f"{y}r", hidden, "R", None) + f"{y}s = Add ({gates}, {y}r)\n"
        gates = f"{y}s"
    return text + f"{y} = {d.activations[0]} ({gates})\n", [y]


LSTM = Kind(4, ("Sigmoid", "Tanh", "Tanh"), _lstm, states=2)
GRU = Kind(3, ("Sigmoid", "Tanh"), _gru)
RNN = Kind(1, ("Tanh",), _rnn)


def _writer(kind: Kind) -> Writer:
    def write(o: Operands) -> Body:
        _require_plain(o)
        way = o.text("direction", "forward")
        directions = 2 if way == "bidirectional" else 1
        hidden = o.shape(2)[-1]
        steps = o.shape(0)[1 if o.number("layout", 0) else 0]
        names = _activations(o, kind, directions)
        text = _prepared(o, kind, directions, steps)
        last: list[list[str]] = []
        every: list[list[str]] = [[] for _ in range(steps)]
        for k in range(directions):
            direction = Direction(o, k, hidden, names[k])
            states: list[str | None] = [
                f"s{i}_{k}" if _starts(o, i) else None for i in range(kind.states)
            ]
            backwards = way == "reverse" or k == 1
            for t in reversed(range(steps)) if backwards else range(steps):
                more, new = kind.step(direction, t, states)
                text += more
                states = list(new)
                every[t].append(new[0])
            last.append([str(state) for state in states])
        text += _outputs(o, kind, every, last)
        results = ["Y", "Y_h", "Y_c"][: kind.states + 1]
        inputs = "X, W, R, B, lens, initial0, initial1, P"
        return Body(f"({inputs}) => ({', '.join(results)}) {{ {text} }}")

    return write


def _require_plain(o: Operands) -> None:
    lengths = o.constant(4)
    steps = o.shape(0)[1 if o.number("layout", 0) else 0]
    whole = not o.has(4) or (lengths is not None and set(lengths) == {steps})
    o.require(whole, "sequence_lens", lengths or "no constant", f"{steps} for each sample")
    o.require(o.real("clip", 0.0) == 0, "clip", o.real("clip", 0.0), "none")


def _activations(o: Operands, kind: Kind, directions: int) -> list[tuple[str, ...]]:
    given = o.texts("activations") or list(kind.activations) * directions
    n = len(kind.activations)
    known = {name.lower(): name for name in _ACTIVATIONS}
    fits = len(given) == n * directions and all(name.lower() in known for name in given)
    o.require(fits, "activations", given, f"{n * directions} of {', '.join(_ACTIVATIONS)}")
    names = [known[name.lower()] for name in given]
    return [tuple(names[k * n : (k + 1) * n]) for k in range(directions)]


def _starts(o: Operands, state: int) -> bool:
    """Whether a state is given, and no constant zeros."""
    value = o.array(5 + state)
    return o.has(5 + state) and (value is None or bool(np.any(value)))


def _prepared(o: Operands, kind: Kind, directions: int, steps: int) -> str:
    """Weights of each direction as matrices, the gates of the input, the states at the start."""
    text = ints("first", [0]) + ints("gone", [1])
    turned = bool(o.number("layout", 0))
    text += f"x = {'Transpose <perm = [1, 0, 2]> (X)' if turned else 'Identity (X)'}\n"
    text += _each(directions, "W", "wm", 0) + _each(directions, "R", "R", 0)
    if o.has(3):
        text += _each(directions, "B", "b", 0)
    if kind is LSTM and o.has(7):
        text += _each(directions, "P", "p", 0)
    for i in range(kind.states):
        if _starts(o, i):
            axis = 1 if turned and o.shape(5 + i)[0] != directions else 0
            text += _each(directions, f"initial{i}", f"s{i}_", 1 if turned else axis)
    for k in range(directions):
        text += _input_gates(o, kind, k) + _at_steps(k, steps)
    return text


def _each(directions: int, source: str, out: str, axis: int) -> str:
    """A tensor with an axis of directions, one value a direction without it."""
    at = "first" if axis == 0 else "gone"
    if directions == 1:
        return f"{out}0 = Squeeze ({source}, {at})\n"
    return f"""{out}0_, {out}1_ = Split <axis = {axis}, num_outputs = 2> ({source})
        {out}0 = Squeeze ({out}0_, {at}) {out}1 = Squeeze ({out}1_, {at})
        """


def _input_gates(o: Operands, kind: Kind, k: int) -> str:
    """(T, N, gates H); where the state's bias stands beside it, it is added at once."""
    text = f"wt{k} = Transpose <perm = [1, 0]> (wm{k}) xw{k} = MatMul (x, wt{k})\n"
    if o.has(3):
        text += f"bw{k}, br{k} = Split <axis = 0, num_outputs = 2> (b{k})\n"
        both = f"Add (bw{k}, br{k})" if kind is not GRU else f"Identity (bw{k})"
        text += f"bx{k} = {both} xg{k} = Add (xw{k}, bx{k})\n"
    else:
        text += f"xg{k} = Identity (xw{k})\n"
    if kind is GRU:
        h = o.shape(2)[-1]
        cut = ints(f"cut{k}", [2 * h, h])
        text += f"{cut} Rzr{k}, Rn{k} = Split <axis = 0> (R{k}, cut{k})\n"
        text += f"bzr{k}, bn{k} = Split <axis = 0> (br{k}, cut{k})\n" if o.has(3) else ""
    if kind is LSTM and o.has(7):
        text += f"pi{k}, po{k}, pf{k} = Split <axis = 0, num_outputs = 3> (p{k})\n"
    return text


def _at_steps(k: int, steps: int) -> str:
    pieces = [f"x{k}_{t}" for t in range(steps)]
    listed = ", ".join(f"{piece}_" for piece in pieces)
    text = f"{listed} = Split <axis = 0, num_outputs = {steps}> (xg{k})\n"
    return text + "".join(f"{piece} = Squeeze ({piece}_, first)\n" for piece in pieces)


def _outputs(o: Operands, kind: Kind, every: list[list[str]], last: list[list[str]]) -> str:
    """Y (T, directions, N, H), and the last states (directions, N, H); the batch first if asked."""
    turned = bool(o.number("layout", 0))
    text, steps = "", []
    for t, names in enumerate(every):
        text += _stacked(f"y{t}", names)
        text += f"y{t}t = Unsqueeze (y{t}, first)\n"
        steps.append(f"y{t}t")
    text += f"Y_ = Concat <axis = 0> ({', '.join(steps)})\n"
    text += f"Y = {'Transpose <perm = [2, 0, 1, 3]> (Y_)' if turned else 'Identity (Y_)'}\n"
    for i, out in enumerate(["Y_h", "Y_c"][: kind.states]):
        text += _stacked(f"{out}_", [states[i] for states in last])
        text += f"{out} = {'Transpose <perm = [1, 0, 2]>' if turned else 'Identity'} ({out}_)\n"
    return text


def _stacked(out: str, names: list[str]) -> str:
    """Values of each direction with an axis in front."""
    text = "".join(f"{out}{name} = Unsqueeze ({name}, first)\n" for name in names)
    joined = ", ".join(f"{out}{name}" for name in names)
    return text + (f"{out} = Concat <axis = 0> ({joined})\n")


BODIES: dict[str, Writer] = {"GRU": _writer(GRU), "LSTM": _writer(LSTM), "RNN": _writer(RNN)}
