"""The zoo's networks: valid files, the papers' sizes, reproducible weights."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from bnnopt.errors import UsageError
from bnnopt.frontend import load_forward
from bnnopt.models import ZOO, build, names
from bnnopt.models.wang2023 import BINARYNET, CNV, MLP
from tests.zoo import EIGHTEEN, FIRST, LARGE, build_small

MODELS = Path(__file__).parents[2] / "models"
COMMITTED = ("mlp", "relu-mini", "resnet-e-mini")
N_WEIGHTS = {
    "mlp": 399_872,
    "binarynet": 14_022_016,
    "cnv": 1_542_848,
    "resnet-e-18": 11_678_912,
    "bi-real-18": 11_678_912,
}
OUTPUTS: dict[str, list[int | str]] = {
    "har": ["batch", 6],
    "unet": ["batch", 4, 32, 32],
    "transformer": ["batch", 5],
    "keyword-gru": ["batch", 12],
}
LISTINGS = {"mlp": MLP, "binarynet": BINARYNET, "cnv": CNV}
SMALL = tuple(name for name in names() if name not in LARGE)


def to_bytes(model: ir.Model) -> bytes:
    return ir.to_proto(model).SerializeToString(deterministic=True)


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: v.const_value.numpy() for name, v in model.graph.initializers.items()}


def without_weights(model: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        tensor.ClearField("raw_data")
    return proto


def shapes(proto: onnx.ModelProto) -> dict[str, list[int | str]]:
    """Shape of every value that a node makes, as the file states it."""
    made = {name for node in proto.graph.node for name in node.output}
    stated = [*proto.graph.value_info, *proto.graph.output]
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in stated
        if v.name in made
    }


def producer(value: ir.Value) -> str | None:
    node = value.producer()
    return node.op_type if node else None


@pytest.mark.parametrize("name", names())
def test_checker_accepts(name: str) -> None:
    proto = ir.to_proto(build(name))
    onnx.checker.check_model(proto, full_check=True)
    opset = 17 if name in FIRST else 18  # the one of the compiler, which reads metadata
    assert [(o.domain, o.version) for o in proto.opset_import] == [("", opset)]


@pytest.mark.parametrize("name", names())
def test_declared_shapes_are_those_that_onnx_infers(name: str) -> None:
    proto = ir.to_proto(build(name))
    declared = shapes(proto)
    del proto.graph.value_info[:]
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    found = shapes(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True))
    assert found == declared
    assert found["logits"] == OUTPUTS.get(name, ["batch", 1000 if name in EIGHTEEN else 10])


@pytest.mark.parametrize("name", N_WEIGHTS)
def test_number_of_weights_is_the_papers(name: str) -> None:
    sizes = {k: w.size for k, w in weights(build(name)).items() if k.endswith(".weight")}
    assert sum(sizes.values()) == N_WEIGHTS[name]


@pytest.mark.parametrize("name", SMALL)
def test_seed_decides_the_bytes(name: str) -> None:
    assert to_bytes(build(name)) == to_bytes(build(name, seed=0))
    assert to_bytes(build(name, seed=1)) != to_bytes(build(name, seed=0))


@pytest.mark.parametrize("name", FIRST)
def test_latent_weights_are_normal_with_variance_one_over_fan_in(name: str) -> None:
    for key, weight in weights(build(name)).items():
        assert weight.dtype == np.float32, key
        if weight.ndim > 1 and weight.size > 1000:
            scaled = weight * math.sqrt(math.prod(weight.shape[1:]))
            n_sigma = 5 / math.sqrt(weight.size)
            assert abs(scaled.mean()) < n_sigma, key
            assert abs(scaled.std() - 1) < n_sigma, key


@pytest.mark.parametrize("name", LISTINGS)
def test_paper_networks_are_binary_in_all_weights_and_all_inner_activations(name: str) -> None:
    products = [n for n in build(name).graph if n.op_type in ("Conv", "Gemm")]
    for i, node in enumerate(products):
        x, weight = node.inputs
        assert producer(weight) == "Sign", node.name
        binary_input = {"Sign", "Flatten", "MaxPool"} if i else {None}
        assert producer(x) in binary_input, node.name


@pytest.mark.parametrize("name", LISTINGS)
def test_paper_networks_train_beta_but_not_gamma(name: str) -> None:
    model = build(name)
    for node in model.graph:
        if node.op_type == "BatchNormalization":
            assert producer(node.inputs[1]) == "Constant"
            assert f"{node.name}.bias" in model.graph.initializers
    assert model.graph.outputs[0].producer().op_type == "BatchNormalization"


@pytest.mark.parametrize("name", LISTINGS)
def test_layers_come_in_the_order_of_the_listing(name: str) -> None:
    letters = {"Conv": "C", "Gemm": "FC", "BatchNormalization": "BN", "MaxPool": "MP", "Sign": "S"}
    nodes = [n for n in build(name).graph if "weight" not in n.name and n.op_type in letters]
    listed = LISTINGS[name].replace("|", ",").split(",")
    expected = [step.strip().rstrip("0123456789") for step in listed]
    assert [letters[n.op_type] for n in nodes] == expected


@pytest.mark.parametrize("name", names())
def test_batch_norm_trains(name: str) -> None:
    for node in build(name).graph:
        if node.op_type == "BatchNormalization":
            attributes = {k: a.value for k, a in node.attributes.items()}
            assert attributes == {
                "training_mode": 1,
                "momentum": pytest.approx(0.9),
                "epsilon": pytest.approx(1e-5),
            }
            assert len(node.outputs) == 3


@pytest.mark.parametrize("name", names())
def test_names_are_set_and_unique(name: str) -> None:
    graph = build(name).graph
    nodes = Counter(n.name for n in graph)
    values = Counter(v.name for n in graph for v in n.outputs)
    assert all(nodes)
    assert max(nodes.values()) == max(values.values()) == 1


def test_node_names_say_what_they_are() -> None:
    found = {n.name: n.op_type for n in build("cnv").graph}
    expected = {
        "conv1": "Conv",
        "conv1_weight_sign": "Sign",
        "bn1": "BatchNormalization",
        "sign1": "Sign",
        "pool1": "MaxPool",
        "flatten": "Flatten",
        "fc1": "Gemm",
    }
    assert expected.items() <= found.items()


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("batch", [1, 3])
def test_onnxruntime_runs_any_batch(name: str, batch: int) -> None:
    proto = ir.to_proto(build_small(name))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (x,) = session.get_inputs()
    samples = np.random.default_rng(0).uniform(-1, 1, (batch, *x.shape[1:])).astype(np.float32)
    (logits,) = session.run(["logits"], {"x": samples})
    assert logits.shape == (batch, 10)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_file_is_what_the_builder_makes(name: str) -> None:
    """Weights may differ by rounding: the generator's tail goes through the platform's libm."""
    path = MODELS / f"{name}.onnx"
    assert path.stat().st_size < 2 * 2**20
    committed, built = ir.load(path), build(name)
    assert without_weights(committed) == without_weights(built)
    expected = weights(built)
    for key, found in weights(committed).items():
        np.testing.assert_allclose(found, expected[key], rtol=1e-6, atol=0, err_msg=key)


def test_names_are_the_table() -> None:
    assert names() == tuple(ZOO)
    assert names()[: len(FIRST)] == FIRST
    assert len(names()) == 22


def test_unknown_name_lists_the_zoo() -> None:
    with pytest.raises(UsageError, match=r"'binarynett'.*bi-real-18, binarynet, "):
        build("binarynett")


def test_sizes() -> None:
    wide = build("resnet-e-18", size=64, classes=7, width=16)
    assert [d if isinstance(d, int) else d.value for d in wide.graph.inputs[0].shape] == [
        *("batch", 3, 64, 64)
    ]
    assert weights(wide)["fc.weight"].shape == (7, 128)
    for options, text in {
        ("mlp", "size"): "mlp has no size to choose",
        ("resnet-e-18", "depth"): "has no depth to choose",
        ("resnet-e-18", "classes"): "classes 0",
    }.items():
        with pytest.raises(UsageError, match=text):
            build(options[0], **{options[1]: 0})
    with pytest.raises(UsageError, match="input size 100: expected a multiple of 32"):
        build("bi-real-18", size=100)
    for name, option in (("boolnet", "width"), ("unet", "size"), ("transformer", "width")):
        with pytest.raises(UsageError, match=f"{name}: {option} 9: expected an even number"):
            build(name, **{option: 9})


@pytest.mark.parametrize("name", EIGHTEEN)
def test_eighteen_layers(name: str) -> None:
    """Sixteen binary convolutions; what is real; where there is a ReLU; the maps' widths."""
    nodes = {n.name: n for n in build(name).graph}
    binary = [n for n in nodes.values() if n.op_type == "Conv" and producer(n.inputs[1]) == "Sign"]
    assert [n.name for n in binary] == [f"block{i}.conv" for i in range(1, 17)]
    assert all(producer(n.inputs[0]) == "Sign" for n in binary)
    real = {n.name for n in nodes.values() if n.op_type in ("Conv", "Gemm")} - {
        n.name for n in binary
    }
    assert real == {"stem.conv", "fc", *(f"block{i}.shortcut.conv" for i in (5, 9, 13))}
    relus = [n.name for n in nodes.values() if n.op_type == "Relu"]
    assert relus == (["stem.relu", "relu"] if name == "resnet-e-18" else [])
    assert ("stem.bn0" in nodes) is (name == "resnet-e-18")
    widths = [nodes[f"block{i}.add"].outputs[0].shape[2] for i in (4, 8, 12, 16)]
    assert (nodes["stem.conv"].outputs[0].shape[2], *widths) == (112, 56, 28, 14, 7)
    scaled = [n for n in nodes.values() if n.op_type == "Mul"]
    assert len(scaled) == (16 if name == "bi-real-18" else 0)


def test_bi_real_asks_for_its_estimator(tmp_path: Path) -> None:
    ir.save(build_small("bi-real-18"), tmp_path / "net.onnx")
    found = load_forward(tmp_path / "net.onnx", 2)
    kinds = {b.name: b.ste for b in found.binarized}
    assert {kinds[f"block{i}.sign"] for i in range(1, 17)} == {"approx-sign"}
    assert list(kinds.values()).count("clipped") == 16
    chosen = load_forward(tmp_path / "net.onnx", 2, ["*=identity"])
    assert {b.ste for b in chosen.binarized} == {"identity"}


def test_negative_seed_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="seed -1"):
        build("mlp", seed=-1)
