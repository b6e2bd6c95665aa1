"""Random small training steps, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.graphs import Network, network
from tests.passes.networks import batch_norm, batch_norm_weights

CHANNELS = 3
LAYERS = {
    "sign": "{y} = Sign ({x})",
    "relu": "{y} = Relu ({x})",
    "clip": "{y} = Clip ({x}, low, high)",
    "tanh": "{y} = Tanh ({x})",
    "conv": "{y} = Conv <pads = [1, 1, 1, 1]> ({x}, w{i})",
    "binary-conv": "b{i} = Sign (w{i})\n {y} = Conv <pads = [1, 1, 1, 1]> ({x}, b{i})",
    "pool": "{y} = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> ({x})",
    "add": "{y} = Add ({x}, {old})",
    "mul": "{y} = Mul ({x}, {old})",
    "reshape": "r{i} = Flatten ({x})\n {y} = Reshape (r{i}, shape)",
    "dropout": "{y} = Dropout ({x}, ratio, mode)",
    "bn": "",
}


@st.composite
def networks(draw: st.DrawFn) -> Network:
    """A chain of 2 to 8 layers of one shape, some of them reading an older value too."""
    kinds = draw(st.lists(st.sampled_from(sorted(LAYERS)), min_size=2, max_size=8))
    lines, values = [], ["v0"]
    weights: dict[str, list[int]] = {"w": [CHANNELS, 2, 1, 1], "fc": [2, CHANNELS * 16]}
    for i, kind in enumerate(kinds, 1):
        old = draw(st.sampled_from(values))
        x, y = values[-1], f"v{i}"
        if kind == "bn":
            lines.append(batch_norm(x, y, i))
            weights |= batch_norm_weights(i, CHANNELS)
        else:
            lines.append(LAYERS[kind].format(x=x, y=y, i=i, old=old))
        if "conv" in kind:
            weights[f"w{i}"] = [CHANNELS, CHANNELS, 3, 3]
        values.append(y)
    body = "\n".join(lines)
    text = f"""g (float[batch,2,4,4] x) => (float[batch,2] y) {{
        low = Constant <value_float = -0.5> ()
        high = Constant <value_float = 0.5> ()
        ratio = Constant <value_float = 0.5> ()
        mode = Constant <value = bool {{1}}> ()
        shape = Constant <value_ints = [0, {CHANNELS}, 4, 4]> ()
        v0 = Conv (x, w)
        {body}
        f = Flatten ({values[-1]})
        y = Gemm <transB = 1> (f, fc)
    }}"""
    optimizer = draw(st.sampled_from(["sgd", "adam"]))
    keep_zero = draw(st.booleans())
    return network(text, weights, loss="mse", batch=2, optimizer=optimizer, keep_zero=keep_zero)
