"""60 networks of torchvision and timm, 15 of papers: gradients against PyTorch's, -O1 against -O0.

    python -m benchmarks.networks networks.json             run what the file does not hold yet
    python -m benchmarks.networks networks.json --markdown  the table of docs/networks.md

Each is written by ``bnnopt.torch.export`` as it trains, at small size, with random weights, and
compiled at -O1. Loss and all gradients are held to PyTorch's (float64 is the referee where float32
disagrees with itself); losses, gradients, new weights and state are held to those of -O0, bit for
bit over two steps. Each network is a process of its own, whose result is added to the file, so that
a run that was broken off goes on. Needs PyTorch, torchvision and timm; the networks of papers are
those of ``tests/torch/papers.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CLASSES = 10
TIMEOUT = 900.0  # seconds, of one network


@dataclass(frozen=True)
class Network:
    """A model as its package makes it: `options` go to its builder; images are `size` pixels."""

    package: str
    name: str
    size: int = 64
    batch: int = 4
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Package and name."""
        return f"{self.package}/{self.name}"


def vision(name: str, size: int = 64, **options: Any) -> Network:
    """A model of torchvision."""
    return Network("torchvision", name, size, options=options)


def timm(name: str, size: int = 64, **options: Any) -> Network:
    """A model of timm."""
    return Network("timm", name, size, options=options)


_SMALL_VIT = {"patch_size": 8, "num_layers": 3, "num_heads": 4, "hidden_dim": 64, "mlp_dim": 128}
_SMALL_SWIN = {
    "patch_size": [4, 4],
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": [4, 4],
}
_SMALL_MAXVIT = {
    "stem_channels": 16,
    "block_channels": [16, 32],
    "block_layers": [1, 1],
    "stochastic_depth_prob": 0.2,
    "head_dim": 8,
    "partition_size": 4,
}

NETWORKS = [
    vision("alexnet"),
    vision("lraspp_mobilenet_v3_large", weights_backbone=None),
    vision("resnet18"),
    vision("resnet50"),
    vision("resnext50_32x4d"),
    vision("squeezenet1_0"),
    vision("squeezenet1_1"),
    vision("DenseNet", growth_rate=12, block_config=(3, 3, 3), num_init_features=24),
    vision("mobilenet_v2"),
    vision("mobilenet_v3_small"),
    vision("shufflenet_v2_x0_5"),
    vision("mnasnet0_5"),
    vision("VisionTransformer", 32, **_SMALL_VIT),
    vision("SwinTransformer", 32, **_SMALL_SWIN),
    vision("SwinTransformerV2", 32, **_SMALL_SWIN),
    vision("MaxVit", 32, **_SMALL_MAXVIT),
    timm("test_resnet"),
    timm("test_vit", img_size=64),
    timm("test_vit2", img_size=64),
    timm("test_efficientnet"),
    timm("test_efficientnet_gn"),
    timm("test_efficientnet_evos"),
    timm("test_byobnet"),
    timm("test_convnext"),
    timm("test_convnext2"),
    timm("test_mambaout"),
    timm("test_nfnet"),
    timm("resnet10t"),
    timm("resnetv2_18", layers=[1, 1, 1, 1]),
    timm("seresnet18", layers=[1, 1, 1, 1]),
    timm("skresnet18", layers=[1, 1, 1, 1]),
    timm("ecaresnet50t", 32, layers=[1, 1, 1, 1]),
    timm("resnest14d", 32),
    timm("res2net50_26w_4s", 32, layers=[1, 1, 1, 1]),
    timm("repvgg_a0", 32),
    timm("lcnet_050"),
    timm("mnasnet_small"),
    timm("dla46_c"),
    timm("ese_vovnet19b_slim", 32),
    timm("selecsls42", 32),
    timm("convnext_atto", depths=(1, 1, 2, 1)),
    timm("inception_next_atto", depths=(1, 1, 2, 1)),
    timm("mambaout_femto", depths=(1, 1, 2, 1)),
    timm("starnet_s050"),
    timm("poolformer_s12", 32),
    timm("mixer_s32_224", img_size=64),
    timm("test_vit3", img_size=64),
    timm("visformer_tiny", img_size=64),
    timm("pit_ti_224", img_size=64),
    timm("vit_tiny_patch16_224", img_size=64, depth=3),
    timm("deit3_small_patch16_224", img_size=64, depth=2),
    timm("cait_xxs24_224", img_size=64, depth=3),
    timm("xcit_nano_12_p16_224", img_size=64, depth=2),
    timm("mobilevit_xxs"),
    timm("edgenext_xx_small"),
    timm("levit_128s", img_size=64),
    timm("hardcorenas_a", 32),
    timm("tinynet_e"),
    vision("regnet_y_400mf", 32),
    vision("googlenet", aux_logits=False, init_weights=True),
]


PAPERS = [
    Network("papers", name)
    for name in (
        *("ReActNet", "IR-Net", "MeliusNet", "BoolNet", "LAB", "MoBiNet", "PokeConv", "QuickNet"),
        *("TWN", "BitNet b1.58", "PACT and DoReFa", "activity", "U-Net", "transformer"),
        "keyword GRU",
    )
]


def made(network: Network) -> tuple[Any, Any]:
    """The module, in training mode, with the weights of seed 0, and a batch."""
    import torch

    if network.package == "papers":
        from tests.torch.papers import make

        return make(network.name)
    shape = (network.batch, 3, network.size, network.size)
    return build(network), torch.randn(shape, generator=torch.Generator().manual_seed(1))


def build(network: Network) -> Any:
    """The module of a package."""
    import torch

    _declare_vision_operators()
    torch.manual_seed(0)
    if network.package == "timm":
        import timm as package

        return package.create_model(network.name, num_classes=CLASSES, **network.options).train()
    from torchvision import models
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2

    options = {"num_classes": CLASSES, **network.options}
    name = network.name
    if name == "VisionTransformer":
        options["image_size"] = network.size
    elif name == "MaxVit":
        options["input_size"] = (network.size, network.size)
    elif name == "SwinTransformerV2":
        name = "SwinTransformer"
        options |= {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    maker = getattr(models, name, None) or getattr(models.segmentation, name)
    return maker(**options).train()


def _declare_vision_operators() -> None:
    """Torchvision's own operators by name alone, where the wheel is for another build of torch.

    No model here calls any of them.
    """
    import torch

    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        source = Path(spec.origin).with_name("_meta_registrations.py").read_text()
        library = torch.library.Library("torchvision", "FRAGMENT")
        _KEPT.append(library)
        for name in sorted(set(re.findall(r'(?:torchvision::|register_meta\(")(\w+)', source))):
            with contextlib.suppress(RuntimeError):
                library.define(f"{name}(Tensor x) -> Tensor")


_KEPT: list[Any] = []


def measured(network: Network) -> dict[str, Any]:
    """What came of one network; ``error`` where it did not get to the end."""
    import bnnopt
    import bnnopt.torch
    from bnnopt.torch.checking import compare_with_torch
    from bnnopt.verification import verify_folder

    started = time.perf_counter()
    module, x = made(network)
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in module.parameters())}
    found["input"] = list(x.shape)
    with tempfile.TemporaryDirectory() as scratch:
        path = bnnopt.torch.export(module, x, Path(scratch) / "model.onnx")
        optimized = bnnopt.optimize(path, level="O1", batch_size=len(x))
        folder = Path(scratch) / "out"
        optimized.save(folder)
        found["nodes"] = len(optimized.training.graph)
        for name, plan in (("before", "baseline"), ("after", "optimized")):
            figures = getattr(optimized.report, plan)
            found[name] = {"peak": figures.peak_bytes, "kept": figures.saved_bytes}
        found["difference"] = compare_with_torch(module, x, folder).defect
        found["bit_equal"] = verify_folder(folder, "native").bit_equal
    found["seconds"] = round(time.perf_counter() - started, 1)
    return found


def is_right(found: dict[str, Any]) -> bool:
    """Whether a network's gradients are PyTorch's, and -O1 the bits of -O0."""
    return not found.get("error") and not found["difference"] and bool(found["bit_equal"])


def run_all(results: Path, keys: list[str]) -> None:
    """Run each network without a result, or those that are named, each in a process of its own."""
    for network in (*NETWORKS, *PAPERS):
        held = json.loads(results.read_text()) if results.exists() else {}
        is_done = not held.get(network.key, {"error": "not run"}).get("error")
        if network.key not in keys and (keys or is_done):
            continue
        command = [sys.executable, "-m", "benchmarks.networks", str(results), "--one", network.key]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            lines = run.stdout.strip().splitlines() or [""]
            found = json.loads(lines[-1]) if run.returncode == 0 else {"error": run.stderr[-300:]}
        except subprocess.TimeoutExpired:
            found = {"error": f"no result in {TIMEOUT:g} s"}
        held[network.key] = found
        results.write_text(json.dumps(held, indent=1))
        print(f"{network.key}: {'right' if is_right(found) else found}", flush=True)


def table(networks: list[Network], held: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The lines of a Markdown table, and a last one that counts."""
    from bnnopt.units import size

    sizes = "kept, `-O0` | `-O1` | | peak, `-O0` | `-O1` | "
    yield f"| network | input | parameters | {sizes}| gradients |"
    yield "|---" * 10 + "|"
    done = [(network, held[network.key]) for network in networks if network.key in held]
    for network, found in done:
        if found.get("error"):
            yield f"| {network.key} | | | | | | | | | {found['error']} |"
            continue
        shape = found.get("input", [network.batch, 3, network.size, network.size])
        cells = [network.key, " x ".join(map(str, shape)), f"{found['parameters']:,}"]
        for kind in ("kept", "peak"):
            before, after = found["before"][kind], found["after"][kind]
            cells += [size(before), size(after), f"{after / before - 1:+.0%}"]
        equal = "" if found["bit_equal"] else "; `-O1` has other bits than `-O0`"
        cells.append((found["difference"] or "PyTorch's") + equal)
        yield "| " + " | ".join(cells) + " |"
    yield f"\n{sum(is_right(found) for _, found in done)} of {len(done)} right.\n"


def main() -> int:
    """Run, or print the table; 1 if a network is not right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="a JSON file, made where it is missing")
    parser.add_argument("--markdown", action="store_true", help="print the table, run nothing")
    parser.add_argument("--one", metavar="KEY", help="run one network, print its result")
    parser.add_argument("--only", nargs="*", default=[], metavar="KEY", help="run these, again")
    options = parser.parse_args()
    if options.one:
        network = next(n for n in (*NETWORKS, *PAPERS) if n.key == options.one)
        try:
            found = measured(network)
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(found))
        return 0
    if options.markdown:
        held = json.loads(options.results.read_text())
        for networks in (NETWORKS, PAPERS):
            print(*table(networks, held), sep="\n")
        return 0
    run_all(options.results, options.only)
    return int(not all(map(is_right, json.loads(options.results.read_text()).values())))


if __name__ == "__main__":
    sys.exit(main())
