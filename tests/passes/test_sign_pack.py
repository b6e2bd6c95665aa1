"""sign-pack: binary activations are kept as bits."""

from __future__ import annotations

import pytest

from bnnopt.analysis import kept_values, saved_bytes
from bnnopt.ops import Emitter
from bnnopt.passes.redirect_consumers import RedirectConsumers
from bnnopt.passes.sign_pack import SignPack
from bnnopt.training_step import TrainingStep
from tests.graphs import apply, network, node, ops, value
from tests.passes.networks import small

PASS = SignPack()


def kept(step: TrainingStep) -> set[str]:
    return {str(root.name) for root in kept_values(step)}


@pytest.mark.parametrize(
    ("name", "signs"),
    [("binary", {"s1", "s2"}), ("residual", {"s1", "s2"}), ("dense", {"s1"})],
)
def test_binary_activations_are_kept_as_bits(name: str, signs: set[str]) -> None:
    step = small(name).step()
    apply(RedirectConsumers(), step)
    assert signs <= kept(step)
    count, skipped = apply(PASS, step)
    assert (count, skipped) == (len(signs), [])
    assert not signs & kept(step)
    assert {f"{s}.signs" for s in signs} <= kept(step)
    assert apply(PASS, step) == (0, [])


def test_each_element_takes_one_bit() -> None:
    step = small("binary").step()
    apply(RedirectConsumers(), step)
    before = saved_bytes(step)
    apply(PASS, step)
    s1, s2 = 4 * 6 * 6, 4 * 3 * 3  # elements of a sample
    assert before - saved_bytes(step) == 4 * 4 * (s1 + s2) - 4 * (-(-s1 // 8) + -(-s2 // 8))


def test_weights_are_packed_where_nothing_rebuilds_them() -> None:
    count, _ = apply(PASS, step := small("binary").step())
    assert count == 4
    assert not {"s1", "s2", "w2b", "w3b"} & kept(step)


def test_a_scaled_sign_is_kept_as_bits() -> None:
    """y = w (a sign(x)): the bits are kept, and a times them made again."""
    text = """g (float[batch,5] x) => (float[batch,3] y) {
        h = Mul (x, v) s = Sign (h) b = Mul (s, a) y = Gemm <transB = 1> (b, w) }"""
    step = network(text, {"v": [5], "a": [1], "w": [3, 5]}).step()
    assert {"s", "b"} <= kept(step)
    apply(PASS, step)
    assert not {"s", "b"} & kept(step)
    assert "s.signs" in kept(step)
    assert ops(step).count("SignPack") == 1


def test_a_view_between_sign_and_product() -> None:
    """The Flatten stands between them: the bits are unpacked in the flat shape."""
    step = small("binary").step()
    apply(PASS, step)
    unpacks = [n for n in step.graph if n.op_type == "SignUnpack"]
    shapes = [list(n.attributes["shape"].as_ints()) for n in unpacks]
    assert [36] in shapes
    assert [4, 6, 6] in shapes


def test_a_sign_that_two_layers_read_is_packed_once() -> None:
    step = network(
        """g (float[batch,6] x) => (float[batch,3] y) {
            h = Gemm (x, w0)
            s = Sign (h)
            a = MatMul (s, w1)
            b = MatMul (s, w2)
            y = Add (a, b)
        }""",
        {"w0": [6, 5], "w1": [5, 3], "w2": [5, 3]},
    ).step()
    count, _ = apply(PASS, step)
    assert count == 1
    assert ops(step).count("SignPack") == 1
    assert ops(step).count("SignUnpack") == 2
    assert "s" not in kept(step)


@pytest.mark.parametrize(
    "body",
    [
        "t = Concat <axis = 1> (s, s2)",
        "t = MaxPool <kernel_shape = [1, 1]> (s)",
        "t = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (s)",
        "t = Transpose <perm = [0, 1, 3, 2]> (s)",
    ],
)
def test_what_only_selects_from_signs_is_packed_too(body: str) -> None:
    step = network(
        f"""g (float[batch,2,3,3] x) => (float[batch,3] y) {{
            h = Conv (x, w0)
            s = Sign (h)
            h2 = Conv (x, w2)
            s2 = Sign (h2)
            {body}
            c = Conv (t, w1)
            y = Flatten (c)
        }}""",
        {
            "w0": [4, 2, 1, 1],
            "w2": [4, 2, 1, 1],
            "w1": [1, 8 if "Concat" in body else 4, 1, 3],
        },
    ).step()
    assert "t" in kept(step)
    apply(PASS, step)
    assert "t" not in kept(step)
    assert "t.signs" in kept(step)
    assert apply(PASS, step)[0] == 0


def test_a_concat_with_a_real_part_is_left_alone() -> None:
    step = network(
        """g (float[batch,5] x) => (float[batch,3] y) {
            h = Gemm (x, w0)
            s = Sign (h)
            t = Concat <axis = 1> (s, h)
            y = MatMul (t, w1)
        }""",
        {"w0": [5, 5], "w1": [10, 3]},
    ).step()
    assert apply(PASS, step) == (0, [])


def test_a_sign_that_may_be_zero_is_not_packed() -> None:
    step = small("binary", keep_zero=True).step()
    apply(RedirectConsumers(), step)
    count, skipped = apply(PASS, step)
    assert count == 0
    assert skipped == [
        (name, "it can be 0, a third value, which takes two bits (ternary-pack)")
        for name in ("s1", "s2")
    ]


def test_a_reader_with_other_rows_is_a_reason() -> None:
    step = network(
        """g (float[batch,2,5] x) => (float[batch,2,3] y) {
            rows = Constant <value_ints = [-1, 5]> ()
            back = Constant <value_ints = [-1, 2, 3]> ()
            h = MatMul (x, w0)
            s = Sign (h)
            r = Reshape (s, rows)
            c = MatMul (r, w1)
            y = Reshape (c, back)
        }""",
        {"w0": [5, 5], "w1": [5, 3]},
        loss="mse",
    ).step()
    assert apply(PASS, step) == (0, [("s", "a reader sees it with other rows")])


def test_a_reader_that_looks_at_it_through_a_view_of_the_backward_pass() -> None:
    """That view is then one of the unpacked value, and keeps nothing else alive."""
    net = small("binary")
    step = net.step()
    sign, gradient = value(step, "f"), node(step, "Gemm", 2)
    assert sign in gradient.inputs
    emit = Emitter(step.graph, "backward")
    shape = emit.constant([0, -1], "int64")
    view = emit("Reshape", sign, shape, name="view")
    step.graph.insert_before(gradient, emit.nodes)
    gradient.replace_input_with(list(gradient.inputs).index(sign), view)
    apply(RedirectConsumers(), step)
    count, _ = apply(PASS, step)
    assert count == 2
    assert not {"s2", "f"} & kept(step)


def test_a_scalar_has_no_rows() -> None:
    step = network(
        """g (float[batch,5] x) => (float y) {
            h = Gemm (x, w0)
            m = ReduceMean <keepdims = 0> (h)
            s = Sign (m)
            y = Mul (s, a)
        }""",
        {"w0": [5, 5], "a": []},
        loss="none",
    ).step()
    assert apply(PASS, step) == (0, [("s", "a scalar has no rows of bits")])


def test_float_networks_are_untouched() -> None:
    assert apply(PASS, small("float").step()) == (0, [])


def test_of_a_transpose_the_bits_of_the_samples_are_kept() -> None:
    """Its rows are features: with one more sample they would be longer, not more."""
    body = """g (float[batch,12] x) => (float[batch,5] y) {
        h = MatMul (x, w0)
        hb = Sign (h)
        wb = Sign (w)
        ht = Transpose <perm = [1, 0]> (hb)
        t = Gemm <transA = 1> (wb, ht)
        y = Transpose <perm = [1, 0]> (t)
    }"""
    step = network(body, {"w0": [12, 9], "w": [9, 5]}).step()
    apply(PASS, step)
    assert "hb.signs" in kept(step)
    assert "ht" not in kept(step)
    assert "ht.signs" not in kept(step)
