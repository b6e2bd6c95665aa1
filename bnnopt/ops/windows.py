"""The sliding window of a convolution or pooling node, with every default written out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from bnnopt.ops.operator import dims, ints


@dataclass(frozen=True)
class NodeWindow:
    """Geometry of a sliding window over `input_shape`, one entry per spatial axis.

    `pads` has all begins, then all ends; an end pad includes what ``ceil_mode`` adds.
    `output_padding` is what the stride leaves unread at the end of each axis.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]
    output_padding: tuple[int, ...]

    @property
    def begins(self) -> tuple[int, ...]:
        """The pads before each axis."""
        return self.pads[: len(self.kernel_shape)]

    def attributes(self) -> dict[str, list[int]]:
        """Strides, pads and dilations as ONNX attributes."""
        return {
            "strides": list(self.strides),
            "pads": list(self.pads),
            "dilations": list(self.dilations),
        }


def output_shape(node: ir.Node, space: Sequence[int], kernel: Sequence[int]) -> tuple[int, ...]:
    """Positions of a window of `kernel` over `space`; `node` has strides, pads and dilations."""
    pads, rank = ints(node, "pads"), len(space)
    axes = zip(
        space, kernel, pads[:rank], pads[rank:], ints(node, "strides"), ints(node, "dilations"),
        strict=True,
    )  # fmt: skip
    return tuple(
        (size + begin + end - dilation * (k - 1) - 1) // stride + 1
        for size, k, begin, end, stride, dilation in axes
    )


def window(node: ir.Node, kernel_shape: tuple[int, ...]) -> NodeWindow:
    """The window of a typed Conv, MaxPool or AveragePool node, automatic padding resolved."""
    rank = len(kernel_shape)
    space, output = dims(node.inputs[0])[2:], dims(node.outputs[0])[2:]
    strides = _attribute(node, "strides", (1,) * rank)
    dilations = _attribute(node, "dilations", (1,) * rank)
    extents = [d * (k - 1) + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    reach = [(o - 1) * s + e for o, s, e in zip(output, strides, extents, strict=True)]
    begins, ends = _pads(node, [max(0, r - n) for r, n in zip(reach, space, strict=True)])
    unread = [n + b + e - r for n, b, e, r in zip(space, begins, ends, reach, strict=True)]
    ends = [e + max(0, -u) for e, u in zip(ends, unread, strict=True)]
    return NodeWindow(
        input_shape=space,
        output_shape=output,
        kernel_shape=kernel_shape,
        strides=strides,
        pads=(*begins, *ends),
        dilations=dilations,
        output_padding=tuple(max(0, u) for u in unread),
    )


def transposed_window(node: ir.Node, kernel_shape: tuple[int, ...]) -> NodeWindow:
    """The window over the output of a typed ConvTranspose node, automatic padding resolved."""
    rank = len(kernel_shape)
    space, output = dims(node.outputs[0])[2:], dims(node.inputs[0])[2:]
    strides = _attribute(node, "strides", (1,) * rank)
    dilations = _attribute(node, "dilations", (1,) * rank)
    unread = _attribute(node, "output_padding", (0,) * rank)
    extents = [d * (k - 1) + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    reach = [(o - 1) * s + e for o, s, e in zip(output, strides, extents, strict=True)]
    cut = [max(0, r + u - n) for r, u, n in zip(reach, unread, space, strict=True)]
    begins, ends = _transposed_pads(node, cut)
    return NodeWindow(
        input_shape=space,
        output_shape=output,
        kernel_shape=kernel_shape,
        strides=strides,
        pads=(*begins, *ends),
        dilations=dilations,
        output_padding=unread,
    )


def _transposed_pads(node: ir.Node, cut: list[int]) -> tuple[list[int], list[int]]:
    """Begins and ends; `cut` is what both take off each axis."""
    mode = node.attributes.get("auto_pad")
    is_upper = mode is not None and mode.as_string() == "SAME_UPPER"
    by_size = mode is not None and mode.as_string() == "SAME_LOWER"
    if is_upper or by_size or "output_shape" in node.attributes:
        less, more = [c // 2 for c in cut], [c - c // 2 for c in cut]
        return (less, more) if is_upper else (more, less)
    rank = len(cut)
    pads = list(_attribute(node, "pads", (0,) * (2 * rank)))
    return pads[:rank], pads[rank:]


def _attribute(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return tuple(attribute.as_ints()) if attribute is not None else default


def _pads(node: ir.Node, missing: list[int]) -> tuple[list[int], list[int]]:
    """Begins and ends; `missing` is what SAME padding has to add along each axis."""
    attribute = node.attributes.get("auto_pad")
    mode = attribute.as_string() if attribute is not None else "NOTSET"
    if mode == "SAME_UPPER":
        return [m // 2 for m in missing], [m - m // 2 for m in missing]
    if mode == "SAME_LOWER":
        return [m - m // 2 for m in missing], [m // 2 for m in missing]
    rank = len(missing)
    pads = list(_attribute(node, "pads", (0,) * (2 * rank))) if mode == "NOTSET" else [0] * 2 * rank
    return pads[:rank], pads[rank:]
