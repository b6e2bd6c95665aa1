"""Operators that move and repeat elements, written out."""

from __future__ import annotations

import numpy as np

from bnnopt.frontend.composed.body import Body, Writer, ints
from bnnopt.ops.operands import Operands


def _depth_to_space(o: Operands) -> Body:
    """Channels (b, b, C) or (C, b, b) become pixels."""
    (_, c, h, w), b = o.shape(0), o.number("blocksize", 1)
    deep = o.text("mode", "DCR") == "DCR"
    split = [0, b, b, c // b**2, h, w] if deep else [0, c // b**2, b, b, h, w]
    perm = [0, 3, 4, 1, 5, 2] if deep else [0, 1, 4, 2, 5, 3]
    return _turned(split, perm, [0, c // b**2, h * b, w * b])


def _space_to_depth(o: Operands) -> Body:
    """Pixels become channels (b, b, C) or (C, b, b)."""
    (_, c, h, w), b = o.shape(0), o.number("blocksize", 1)
    split = [0, c, h // b, b, w // b, b]
    deep = o.text("mode", "DCR") == "DCR"
    return _turned(
        split, [0, 3, 5, 1, 2, 4] if deep else [0, 1, 3, 5, 2, 4], [0, c * b**2, h // b, w // b]
    )


def _turned(split: list[int], perm: list[int], joined: list[int]) -> Body:
    return Body(f"""(x) => (y) {{ {ints("split", split)} a = Reshape (x, split)
        t = Transpose <perm = {perm}> (a) {ints("joined", joined)} y = Reshape (t, joined) }}""")


def _tile(o: Operands) -> Body | None:
    """A new axis before each that is repeated, stretched, and joined with it."""
    repeats = o.constant(1)
    if repeats is None:
        return None
    axes: list[int] = []
    stretched: list[int] = []
    for n in repeats:
        if n > 1:
            axes.append(len(stretched))
            stretched.append(n)
        stretched.append(1)
    if not axes:
        return Body("(x, repeats) => (y) { y = Identity (x) }")
    sizes = [n * size for n, size in zip(repeats, o.shape(0), strict=True)]
    joined = ints("joined", [0 if repeats[0] == 1 else -1, *sizes[1:]])
    return Body(f"""(x, repeats) => (y) {{ {ints("axes", axes)} a = Unsqueeze (x, axes)
        {ints("long", stretched)} e = Expand (a, long) {joined} y = Reshape (e, joined) }}""")


def _scalar(o: Operands) -> Body | None:
    """A shape without dimensions is a constant without elements, which no program holds."""
    if o.constant(1) != []:
        return None
    return Body("(x, shape) => (y) { y = Squeeze (x) }")


def _pad(o: Operands) -> Body | None:
    """What is no constant border picks elements, along one axis after the other."""
    mode, pads, rank = o.text("mode", "constant"), o.constant(1), len(o.shape(0))
    if mode == "constant" or pads is None:
        return None
    axes = o.constant(3) if o.has(3) else list(range(rank))
    assert axes is not None
    picked, value, steps = {}, "x", ""
    for axis, begin, end in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        size = o.shape(0)[axis]
        kept = np.arange(size)[max(-begin, 0) : size - max(-end, 0)]
        border = (max(begin, 0), max(end, 0))
        if mode != "edge":
            limit, most = len(kept) - (mode == "reflect"), max(border)
            o.require(most <= limit, "pads", list(border), f"at most {limit} of a {mode} border")
        if any(border) or len(kept) < size:
            picked[f"i{axis % rank}"] = np.pad(kept, border, mode=mode)  # type: ignore[call-overload]
            steps += f"v{axis % rank} = Gather <axis = {axis}> ({value}, i{axis % rank})\n"
            value = f"v{axis % rank}"
    return Body(f"(x, p, c, a) => (y) {{ {steps} y = Identity ({value}) }}", picked)


def _matmul(o: Operands) -> Body | None:
    """A vector is a row in front, a column behind."""
    ranks = len(o.shape(0)), len(o.shape(1))
    if min(ranks) > 1:
        return None
    steps, names, gone = ints("front", [0]) + ints("back", [-1]), ["a", "b"], []
    if ranks[0] == 1:
        steps, names[0] = f"{steps} row = Unsqueeze (a, front)", "row"
        gone.append(-1 if ranks[1] == 1 else -2)
    if ranks[1] == 1:
        steps, names[1] = f"{steps} column = Unsqueeze (b, back)", "column"
        gone.append(-2 if ranks[0] == 1 else -1)
    return Body(f"""(a, b) => (y) {{ {steps} product = MatMul ({", ".join(names)})
        {ints("gone", gone)} y = Squeeze (product, gone) }}""")


def _global_max_pool(o: Operands) -> Body:
    """One window: the first maximum takes the gradient, as in PyTorch."""
    return Body(f"(x) => (y) {{ y = MaxPool <kernel_shape = {list(o.shape(0)[2:])}> (x) }}")


BODIES: dict[str, Writer] = {
    "DepthToSpace": _depth_to_space,
    "GlobalMaxPool": _global_max_pool,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _scalar,
    "SpaceToDepth": _space_to_depth,
    "Tile": _tile,
}
