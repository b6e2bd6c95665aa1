"""Names of emitted values, and constants, with emitters that share what they know of a graph."""

import numpy as np
import onnx_ir as ir
import pytest

from bnnopt.ops import Emitter, shared_names


def graph_with(*names: str) -> ir.Graph:
    inputs = [ir.val(name, dtype=ir.DataType.FLOAT, shape=(2,)) for name in names]
    return ir.Graph(inputs, [], nodes=[], opset_imports={"": 20})


def test_emitters_that_share_names_give_none_twice() -> None:
    graph = graph_with("x")
    with shared_names(graph):
        made = [Emitter(graph, "forward")("Neg", graph.inputs[0], name="x") for _ in range(2)]
    assert [value.name for value in made] == ["x_2", "x_3"]


def test_without_sharing_an_emitter_knows_only_what_is_in_the_graph() -> None:
    graph = graph_with("x")
    made = [Emitter(graph, "forward")("Neg", graph.inputs[0], name="x") for _ in range(2)]
    assert [value.name for value in made] == ["x_2", "x_2"]


def test_sharing_ends_with_an_error() -> None:
    graph = graph_with("x")
    with pytest.raises(ZeroDivisionError), shared_names(graph):
        raise ZeroDivisionError
    assert not graph.meta


def test_a_constant_that_has_left_the_graph_is_made_anew() -> None:
    graph = graph_with("x")
    with shared_names(graph):
        first = Emitter(graph, "forward").constant(1, np.float32)
        assert Emitter(graph, "forward").constant(1, np.float32) is first
        graph.initializers.pop(str(first.name))
        again = Emitter(graph, "forward").constant(1, np.float32)
    assert again is not first
    assert [*graph.initializers.values()] == [again]
