"""A table of the operators that the reader writes out in others.

To add one: a case for each option that its body reads, with the parameters that it trains.
"""

from __future__ import annotations

from tests.autodiff.cases import Case, near, positive, spaced


def _case(operator: str, note: str, body: str, *rest: object, **options: object) -> Case:
    plain = body.replace(" <>", "")
    return Case(operator, note, plain, *rest, written_out=True, **options)  # type: ignore[arg-type]


def _vector(name: str, *values: int) -> str:
    return f"{name} = Constant <value_ints = {list(values)}> ()"


ELEMENTWISE = [
    *(
        _case(name, note, f"y = {name} <{attributes}> (h)", (5,), draw=near, opset=22)
        for name, note, attributes in (
            ("Elu", "default", ""),
            ("Elu", "alpha", "alpha = 0.5"),
            ("Celu", "default", ""),
            ("Celu", "alpha", "alpha = 0.5"),
            ("Selu", "default", ""),
            ("Selu", "both", "alpha = 1.5, gamma = 0.5"),
            ("Mish", "default", ""),
            ("Softsign", "default", ""),
            ("ThresholdedRelu", "default", ""),
            ("ThresholdedRelu", "alpha", "alpha = 2.0"),
            ("Shrink", "default", ""),
            ("Shrink", "both", "lambd = 1.0, bias = 0.5"),
        )
    ),
    _case("Swish", "default", "y = Swish (h)", (5,), opset=24, stock=False),
    _case("Swish", "alpha", "y = Swish <alpha = 1.5> (h)", (5,), opset=24, stock=False),
    _case("Clip", "both", "p = Abs (w) l = Neg (p) y = Clip (h, l, p)", (5,), {"w": ()}),
    _case("Clip", "high", "p = Abs (w) y = Clip (h, , p)", (5,), {"w": ()}),
    _case("Clip", "low", "p = Abs (w) y = Clip (h, p)", (5,), {"w": ()}),
    _case("Sum", "three", "y = Sum (h, w, v)", (5,), {"w": (5,), "v": (1,)}),
    _case("Sum", "one", "y = Sum (h)"),
    _case("Mean", "three", "y = Mean (h, w, v)", (5,), {"w": (5,), "v": (1,)}),
]
REDUCTIONS = [
    _case(name, note, f"{_vector('a', 1)} y = {name} <{attributes}> (h{axes})", (3, 2), draw=near)
    for name in ("ReduceL1", "ReduceL2", "ReduceSumSquare")
    for note, attributes, axes in (
        ("axis", "", ", a"),
        ("flat", "keepdims = 0", ", a"),
        ("all", "", ""),
        ("nothing", "noop_with_empty_axes = 1", ""),
    )
]
REDUCTIONS.append(
    _case("ReduceLogSum", "axis", f"{_vector('a', 1)} y = ReduceLogSum (h, a)", (3, 2),
          draw=positive)
)  # fmt: skip
NORMALIZATIONS = [
    _case("LayerNormalization", "statistics",
          "n, m, i = LayerNormalization (h, g, k) s = Mul (m, i) y = Add (n, s)", (3, 4),
          {"g": (4,), "k": (4,)}),
    _case("InstanceNormalization", "image", "y = InstanceNormalization (h, g, k)", (3, 2, 2),
          {"g": (3,), "k": (3,)}),
    _case("InstanceNormalization", "line", "y = InstanceNormalization <epsilon = 0.1> (h, g, k)",
          (3, 4), {"g": (3,), "k": (3,)}),
    _case("RMSNormalization", "last", "y = RMSNormalization (h, g)", (3, 4), {"g": (4,)},
          opset=23, stock=False),
    _case("RMSNormalization", "planes", "y = RMSNormalization <axis = 1, epsilon = 0.1> (h, g)",
          (3, 4), {"g": (3, 4)}, opset=23, stock=False),
]  # fmt: skip
SHAPES = [
    *(
        _case("DepthToSpace", mode, f'y = DepthToSpace <blocksize = 2, mode = "{mode}"> (h)',
              (8, 2, 3))
        for mode in ("DCR", "CRD")
    ),
    _case("SpaceToDepth", "two", "y = SpaceToDepth <blocksize = 2> (h)", (2, 4, 6)),
    *(
        _case("SpaceToDepth", mode, f'y = SpaceToDepth <blocksize = 2, mode = "{mode}"> (h)',
              (2, 4, 2), opset=28, stock=False)
        for mode in ("DCR", "CRD")
    ),
    *(
        _case("Tile", note, f"{_vector('r', *repeats)} y = Tile (h, r)", (2, 3))
        for note, repeats in (("last", (1, 1, 2)), ("two", (1, 3, 2)), ("nothing", (1, 1, 1)))
    ),
    *(
        _case("Pad", f"{mode}-{note}",
              f'{_vector("p", *pads)} y = Pad <mode = "{mode}"> (h, p)', (2, 4))
        for mode in ("reflect", "edge", "wrap")
        for note, pads in (("both", (0, 1, 2, 0, 0, 1)), ("last", (0, 0, 3, 0, 0, 2)))
    ),
    _case("Pad", "edge-wider-than-it",
          f'{_vector("p", 0, 3, 0, 2)} y = Pad <mode = "edge"> (h, p)', (2,)),
    _case("MatMul", "vector", "y = MatMul (h, v)", (3,), {"v": (3,)}),
    _case("MatMul", "vector-in-front", "t = MatMul (v, h) y = Mul (t, t)", (3, 2), {"v": (3,)}),
    _case("MatMul", "two-vectors", "d = MatMul (v, w) y = Mul (h, d)", (3,),
          {"v": (4,), "w": (4,)}),
    _case("GlobalMaxPool", "image", "y = GlobalMaxPool (h)", (3, 2, 3), draw=spaced),
    _case("Max", "three", "y = Max (h, w, v)", (5,), {"w": (5,), "v": (5,)}),
    _case("Min", "three", "y = Min (h, w, v)", (5,), {"w": (5,), "v": (5,)}),
]  # fmt: skip


def _resize(
    note: str, attributes: str, sample: tuple[int, ...], scales: str = "", sizes: str = ""
) -> Case:
    kind = f"value_floats = [{scales}]" if scales else f"value_ints = [{sizes}]"
    inputs = "h, , s" if scales else "h, , , s"
    body = f"s = Constant <{kind}> () y = Resize <{attributes}> ({inputs})"
    return _case("Resize", note, body, sample)


_TWICE = "1.0, 1.0, 2.0, 2.0"
RESIZES = [
    _resize("nearest", 'mode = "nearest", coordinate_transformation_mode = "asymmetric",'
            ' nearest_mode = "floor"', (2, 3, 2), scales=_TWICE),
    _resize("nearest-default", 'mode = "nearest"', (1, 3, 4), scales="1.0, 1.0, 1.7, 0.6"),
    _resize("half-pixel", 'mode = "linear", coordinate_transformation_mode = "half_pixel"',
            (2, 3, 2), scales=_TWICE),
    _resize("pytorch", 'mode = "linear", coordinate_transformation_mode = "pytorch_half_pixel"',
            (1, 3, 2), scales="1.0, 1.0, 1.5, 3.0"),
    _resize("corners", 'mode = "linear", coordinate_transformation_mode = "align_corners"',
            (1, 3, 2), sizes="4, 1, 5, 4"),
    _resize("cubic", 'mode = "cubic", cubic_coeff_a = -0.75', (1, 4, 4), scales=_TWICE),
    _resize("smaller", 'mode = "linear"', (1, 6, 5), sizes="4, 1, 3, 2"),
    _resize("line", 'mode = "linear"', (2, 3), scales="1.0, 1.0, 2.0"),
    _resize("volume", 'mode = "linear"', (1, 2, 2, 2), scales="1.0, 1.0, 2.0, 2.0, 2.0"),
    _resize("axes-in-another-order", 'mode = "nearest", axes = [3, 2]', (1, 2, 3),
            scales="2.0, 3.0"),
    _resize("axes", 'mode = "linear", axes = [2]', (1, 3, 2), scales="2.0"),
]  # fmt: skip
HIDDEN, WIDTH = 3, 2


def _recurrent(
    operator: str, note: str, attributes: str = "", extra: str = "", way: str = "forward",
    outputs: str = "y", after: str = "", **more: tuple[int, ...],
) -> Case:  # fmt: skip
    """x is (N, T, D), as PyTorch has it with batch_first; `extra` follows the bias."""
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[operator]
    n = 2 if way == "bidirectional" else 1
    listed = f'hidden_size = {HIDDEN}, direction = "{way}"' + (
        f", {attributes}" if attributes else ""
    )
    weights = {"W": (n, gates * HIDDEN, WIDTH), "R": (n, gates * HIDDEN, HIDDEN)}
    weights |= {"B": (n, 2 * gates * HIDDEN)} | more
    bias = "" if "B" in note else ", B"
    if "no-bias" in note:
        bias = ""
        del weights["B"]
    body = f"""t = Transpose <perm = [1, 0, 2]> (h)
        {outputs} = {operator} <{listed}> (t, W, R{bias}{extra}) {after}"""
    return _case(operator, note, body, (3, WIDTH), weights)


def _likelihood(note: str, name: str, attributes: str, weights: str = "") -> Case:
    """y is the loss; the labels are the classes 0 to 3 at random places of the batch."""
    start = "l = Constant <value_ints = [2, 0, 1, 2]> ()"
    given = f"v = Constant <value_floats = [{weights}]> ()" if weights else ""
    log = "p = LogSoftmax <axis = 1> (h)" if name[0] == "N" else "p = Identity (h)"
    call = f"y = {name} <{attributes}> (p, l{', v' if weights else ''})"
    return _case(name, note, f"{start} {given} {log} {call}", (3,), any_batch=False)


LOSSES = [
    _likelihood(f"{reduction}-{weights[:3]}-{ignored}", name,
                f'reduction = "{reduction}"' + (f", ignore_index = {ignored}" if ignored else ""),
                weights)
    for name in ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
    for reduction in ("mean", "sum", "none")
    for weights in ("", "0.5, 2.0, 1.0")
    for ignored in ("", "2")
]  # fmt: skip
EINSUMS = [
    _case("Einsum", note, f'y = Einsum <equation = "{equation}"> ({operands})', sample, parameters)
    for note, equation, operands, sample, parameters in (
        ("dense", "ni,oi->no", "h, w", (3,), {"w": (2, 3)}),
        ("attention", "nqhd,nkhd->nhqk", "h, h", (3, 2, 2), {}),
        ("ellipsis", "...i,ij->...j", "h, w", (2, 3), {"w": (3, 2)}),
        ("implicit", "ni,ij", "h, w", (3,), {"w": (3, 2)}),
        ("outer", "ni,j->nij", "h, w", (3,), {"w": (2,)}),
        ("transposed", "nij->nji", "h", (2, 3), {}),
        ("summed", "nij->ni", "h", (2, 3), {}),
        ("summed-in-one", "nij,jk->nk", "h, w", (2, 3), {"w": (3, 2)}),
        ("three", "ni,ij,nj->n", "h, w, h", (3,), {"w": (3, 3)}),
        ("same-labels", "nij,nij->ni", "h, h", (2, 3), {}),
        ("bilinear", "ni,oij,nj->no", "h, w, h", (3,), {"w": (2, 3, 3)}),
    )
]
_ZEROS = f"""n = Shape <start = 0, end = 1> (x) o = Constant <value_ints = [1]> ()
    k = Constant <value_ints = [{HIDDEN}]> () z = Concat <axis = 0> (o, n, k)"""
RECURRENT = [
    *(_recurrent(name, "plain") for name in ("LSTM", "GRU", "RNN")),
    *(_recurrent(name, "no-bias") for name in ("LSTM", "GRU", "RNN")),
    *(_recurrent(name, "reverse", way="reverse") for name in ("LSTM", "GRU", "RNN")),
    *(_recurrent(name, "both", way="bidirectional") for name in ("LSTM", "GRU", "RNN")),
    *(
        _recurrent(name, "last-state", outputs=", y", way="bidirectional")
        for name in ("LSTM", "GRU", "RNN")
    ),
    _recurrent("LSTM", "cell", outputs=", , y"),
    _recurrent("GRU", "reset-first", "linear_before_reset = 1"),
    _recurrent("GRU", "reset-first-no-bias", "linear_before_reset = 1"),
    _recurrent("RNN", "relu", 'activations = ["Relu"]'),
    _recurrent("LSTM", "activations", 'activations = ["Sigmoid", "Softsign", "Tanh"]'),
    _recurrent("LSTM", "peepholes", extra=", , , , P", P=(1, 3 * HIDDEN)),
    _recurrent("LSTM", "coupled", "input_forget = 1"),
]


def _started(operator: str, states: int) -> Case:
    """A trained state at the start, stretched over the batch."""
    case = _recurrent(operator, "state", extra=", " + ", s" * states, S=(1, 1, HIDDEN))
    body = f"{_ZEROS} s = Expand (S, z) {case.body}"
    return _case(operator, "state", body, case.sample, case.parameters, any_batch=False)


RECURRENT += [_started("LSTM", 2), _started("GRU", 1), _started("RNN", 1)]
# What ONNX defines by a function, without a body of ours.
FUNCTIONS = [
    _case("MeanVarianceNormalization", "planes",
          "y = MeanVarianceNormalization <axes = [0, 2, 3]> (h)", (2, 3, 2)),
    _case("MeanVarianceNormalization", "rows", "y = MeanVarianceNormalization <axes = [1]> (h)",
          (4,)),
    _case("Attention", "heads", "k = Mul (h, w) y = Attention (h, k, h)", (2, 3, 4), {"w": (4,)},
          opset=23, stock=False),
    _case("Attention", "causal", "k = Mul (h, w) y = Attention <is_causal = 1> (h, k, h)",
          (2, 3, 4), {"w": (4,)}, opset=23, stock=False, any_batch=False),
]  # fmt: skip
CASES = [
    *ELEMENTWISE,
    *REDUCTIONS,
    *NORMALIZATIONS,
    *SHAPES,
    *RESIZES,
    *LOSSES,
    *EINSUMS,
    *RECURRENT,
]
