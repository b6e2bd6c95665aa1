"""Einsum, written out as matrix products: two operands at a time.

The labels of two operands are shared and kept (batch), shared and summed, or of one of them alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from bnnopt.frontend.composed.body import Body, Writer, ints
from bnnopt.ops.operands import Operands


def _einsum(o: Operands) -> Body:
    terms, result = _parsed(o)
    sizes = {c: n for i, term in enumerate(terms) for c, n in zip(term, o.shape(i), strict=True)}
    names = [f"x{i}" for i in range(len(terms))]
    text, left, labels = "", names[0], terms[0]
    for i, (name, term) in enumerate(zip(names[1:], terms[1:], strict=True)):
        later = set(result).union(*terms[i + 2 :])
        more, left, labels = _product(f"p{i}", (left, labels), (name, term), later, sizes)
        text += more
    more, left, labels = _summed("last", left, labels, set(result))
    text += more + f"y = Transpose <perm = {_order(labels, result)}> ({left})\n"
    return Body(f"({', '.join(names)}) => (y) {{ {text} }}")


def _parsed(o: Operands) -> tuple[list[str], str]:
    """The labels of each operand and of the result, an ellipsis written out in capitals."""
    equation = o.text("equation", "").replace(" ", "")
    operands, arrow, result = equation.partition("->")
    terms = operands.split(",")
    ranks = [len(o.shape(i)) for i in range(o.n_inputs)]
    free = "".join(c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in equation)
    shown = [r - len(t) + 3 for t, r in zip(terms, ranks, strict=False) if "..." in t]
    rest = free[: max(shown, default=0)][::-1]
    fits = len(terms) == len(ranks) and all(n == len(rest) for n in shown)
    o.require(fits, "equation", equation, "one term an operand, of ellipses with as many axes")
    terms = [term.replace("...", rest) for term in terms]
    if not arrow:
        once = sorted(c for c in set("".join(terms)) - set(rest) if "".join(terms).count(c) == 1)
        result = "..." + "".join(once)
    result = result.replace("...", rest)
    fits = all(len(set(t)) == len(t) == r for t, r in zip(terms, ranks, strict=True))
    o.require(fits, "equation", equation, "each label once a term, one an axis")
    for label in set("".join(terms)):
        found = {o.shape(i)[t.index(label)] for i, t in enumerate(terms) if label in t}
        o.require(len(found) == 1, f"the sizes of label {label!r}", sorted(found), "one size")
    return terms, result


def _product(
    out: str, left: tuple[str, str], right: tuple[str, str], kept: set[str], sizes: dict[str, int]
) -> tuple[str, str, str]:
    """Statements, the name and the labels of the product, summed over what nobody reads later."""
    text, a, a_labels = _summed(f"{out}a", *left, kept | set(right[1]))
    more, b, b_labels = _summed(f"{out}b", *right, kept | set(a_labels))
    batch = [c for c in a_labels if c in b_labels and c in kept]
    summed = [c for c in a_labels if c in b_labels and c not in kept]
    rows = [c for c in a_labels if c not in b_labels]
    columns = [c for c in b_labels if c not in a_labels]
    text += more + _matrix(f"{out}m", a, a_labels, (batch, rows, summed), sizes)
    text += _matrix(f"{out}n", b, b_labels, (batch, summed, columns), sizes)
    labels = "".join([*batch, *rows, *columns])
    shape = [sizes[c] for c in labels]
    text += f"{out}c = MatMul ({out}m, {out}n) {ints(f'{out}s', _free(shape))}"
    return text + f"{out} = Reshape ({out}c, {out}s)\n", out, labels


def _matrix(
    out: str, source: str, labels: str, groups: tuple[list[str], ...], sizes: dict[str, int]
) -> str:
    """(batch.., rows, columns) of a tensor: batch labels keep their axes, the others are joined."""
    batch, rows, columns = groups
    turned = _order(labels, [*batch, *rows, *columns])
    joined = [math.prod(sizes[c] for c in group) for group in (rows, columns)]
    shape = _free([*(sizes[c] for c in batch), *joined])
    return f"""{out}t = Transpose <perm = {turned}> ({source})
        {ints(f"{out}s", shape)} {out} = Reshape ({out}t, {out}s)
        """


def _free(shape: list[int]) -> list[int]:
    """The first axis left open: it may be the batch."""
    return [-1, *shape[1:]] if shape else shape


def _summed(out: str, source: str, labels: str, kept: set[str]) -> tuple[str, str, str]:
    axes = [i for i, c in enumerate(labels) if c not in kept]
    if not axes:
        return "", source, labels
    rest = "".join(c for c in labels if c in kept)
    text = f"{ints(f'{out}_axes', axes)} {out} = ReduceSum <keepdims = 0> ({source}, {out}_axes)\n"
    return text, out, rest


def _order(labels: str, wanted: Iterable[str]) -> list[int]:
    return [labels.index(c) for c in wanted]


BODIES: dict[str, Writer] = {"Einsum": _einsum}
