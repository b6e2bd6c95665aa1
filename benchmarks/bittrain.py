"""BitTrain's networks: what is kept for the backward pass, the peak, sparsity, and equal bits.

    python -m benchmarks.bittrain plan --sizes 32 224 --batches 8 16     bytes at -O0 and -O1
    python -m benchmarks.bittrain sparsity --networks resnet18 --batches 32 --steps 300
    python -m benchmarks.bittrain bits --sizes 32                        equal gradients and weights
    python -m benchmarks.bittrain steps --networks resnet18 --sizes 224  seconds, resident growth
    python -m benchmarks.bittrain train --networks mobilenet_v2          curves of a fine-tuning

``plan`` goes by the density that two batches of random images show at the first weights; with
``--alone`` it has two lines more without ``rebuild-activations``, so that the bitmap does all it
can: at that density, and at 70 % zeros in every ReLU (``--density`` changes that). ``sparsity``
trains on Fashion-MNIST, counts the zeros behind every ReLU before and after, and plans with both.
``bits`` has a negative control, a lossy pass. Needs the oracle extra; the networks are those of
``tests/exports/float_networks.py``.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.steps import EAGER, Process

MIB = 2**20
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
WITHOUT = ("rebuild-activations",)
FINE_TUNING_RATE = 1e-4

# -O1 as it is, and with the bitmap for all that it can keep.
LEVELS: dict[str, dict[str, Any]] = {
    "-O0": {"level": "O0"},
    "-O1": {"level": "O1"},
    "-O1, bitmap alone": {"level": "O1", "disable": WITHOUT},
}


def main() -> None:
    """Run one of the measurements."""
    from tests.exports.float_networks import FLOAT_NETWORKS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    runs = {"plan": plan, "sparsity": sparsity, "bits": bits, "steps": steps, "train": train}
    parser.add_argument("what", choices=runs)
    parser.add_argument("--networks", nargs="+", default=list(FLOAT_NETWORKS))
    parser.add_argument("--sizes", nargs="+", type=int, default=[32])
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--alone", action="store_true", help="plan: the bitmap alone as well")
    parser.add_argument("--density", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--plan-sizes", nargs="+", type=int, help="sparsity: of the inputs planned")
    parser.add_argument("--plan-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="steps: processor time, not wall")
    options = parser.parse_args()
    for name in options.networks:
        for size in options.sizes:
            for batch in options.batches:
                with tempfile.TemporaryDirectory() as scratch:
                    path = _export(name, size, Path(scratch))
                    runs[options.what](name, path, batch, options)


def _export(name: str, size: int, scratch: Path) -> Path:
    from tests.exports.float_networks import make_float_network, small_size
    from tests.exports.torch_models import write

    size = max(size, small_size(name))
    path = scratch / f"{name}_{size}.onnx"
    write(make_float_network(name, size), path, (3, size, size))
    return path


def _images(path: Path, n: int) -> NDArray[np.float32]:
    size = int(path.stem.rpartition("_")[2])
    return np.random.default_rng(0).standard_normal((n, 3, size, size), np.float32)


# Planned bytes ----------------------------------------------------------------------------------


def plan(name: str, path: Path, batch: int, options: argparse.Namespace) -> None:
    """Print what is kept, and the planned peak, before and after."""
    import bnnopt

    data = path.with_suffix(".npz")
    np.savez(data, x=_images(path, 2 * batch))
    for label in ("-O1", "-O1, bitmap alone") if options.alone else ("-O1",):
        chosen = {**LEVELS[label], "calibrate": str(data)}
        report = bnnopt.optimize(path, batch_size=batch, **chosen).report
        _line(path, batch, label, report.baseline, report.optimized)
        _densities(report)
    if not options.alone:
        return
    before, after = at_density(path, batch, options.density)
    _line(path, batch, f"-O1, bitmap alone, {1 - options.density:.0%} zeros", before, after)


def _line(path: Path, batch: int, label: str, before: Any, after: Any) -> None:
    saved, peak = after.saved_bytes / before.saved_bytes, after.peak_bytes / before.peak_bytes
    print(
        f"{path.stem} batch {batch} {label}: kept {before.saved_bytes / MIB:.1f} -> "
        f"{after.saved_bytes / MIB:.1f} MiB ({saved - 1:+.0%}), peak "
        f"{before.peak_bytes / MIB:.1f} -> {after.peak_bytes / MIB:.1f} MiB ({peak - 1:+.0%}), "
        f"of which weights and state {after.persistent_bytes / MIB:.1f}, "
        f"worst case {after.worst_case_bytes / MIB:.1f}",
        flush=True,
    )


def _densities(report: Any) -> None:
    (record,) = [r for r in report.passes if r.name == "bitmap"]
    found = [choice.reason.partition("density ")[2][:4] for choice in record.chosen]
    print("    density with its margin, of each bitmap in order:", " ".join(found))


def at_density(path: Path, batch: int, density: float) -> tuple[Any, Any]:
    """Footprints at -O0 and at -O1 where every ReLU and what is pooled of one has this density."""
    from bnnopt.analysis import DENSITY_KEY, expected_density
    from bnnopt.autodiff import TrainingOptions, build_training_step, make_optimizer
    from bnnopt.frontend import load_forward
    from bnnopt.passes import PASSES, run_passes
    from bnnopt.plan import make_plan
    from bnnopt.report import Footprint
    from bnnopt.training_step import TrainingStep

    options = TrainingOptions("cross-entropy", make_optimizer("adam"))
    reference = build_training_step(load_forward(path, batch), options, path)
    step = TrainingStep(reference.model.clone())
    for node in step.graph:
        sparse = node.inputs[0] if node.op_type == "MaxPool" else node.outputs[0]
        if sparse is not None and expected_density(sparse) is not None:
            node.outputs[0].metadata_props[DENSITY_KEY] = str(density)
    run_passes(step, [p for p in PASSES if p.level == 1 and p.name not in WITHOUT])
    return Footprint.of(make_plan(reference)), Footprint.of(make_plan(step))


# Sparsity ---------------------------------------------------------------------------------------


def sparsity(name: str, path: Path, batch: int, options: argparse.Namespace) -> None:
    """Train on Fashion-MNIST; print the zeros behind each ReLU before and after, and the plans."""
    import bnnopt

    size = int(path.stem.rpartition("_")[2])
    images, labels = _fashion(size, batch * options.steps)
    folder = path.with_name("trained")
    bnnopt.optimize(path, batch_size=batch).save(folder)
    session = bnnopt.TrainingSession(folder, threads=options.threads)
    losses = _run(session, images, labels, batch)
    print(
        f"{path.stem} batch {batch}: {len(losses)} steps, loss {np.mean(losses[:10]):.3f} -> "
        f"{np.mean(losses[-10:]):.3f}"
    )
    for at in options.plan_sizes or [size]:
        first = _export(name, at, path.parent)
        _compare(first, _with_weights(first, session), batch * options.steps, options)


def _compare(first: Path, trained: Path, n_seen: int, options: argparse.Namespace) -> None:
    """Zeros and plans of both on images that were not seen."""
    import bnnopt

    data, batch = first.with_suffix(".npz"), options.plan_batch
    images, _ = _fashion(int(first.stem.rpartition("_")[2]), 8 * batch, skip=n_seen)
    np.savez(data, x=images)
    before, after = (zeros(path, batch, data) for path in (first, trained))
    print(f"{first.stem} batch {batch}: least zeros of eight batches, before and after")
    for value, share in before.items():
        print(f"    {value:55} {share:6.1%} {after[value]:6.1%}")
    means = [float(np.mean(list(shares.values()))) for shares in (before, after)]
    print(f"    {'mean':55} {means[0]:6.1%} {means[1]:6.1%}")
    for weights, model in (("first", first), ("trained", trained)):
        for label in ("-O1", "-O1, bitmap alone"):
            chosen = {**LEVELS[label], "calibrate": str(data)}
            report = bnnopt.optimize(model, batch_size=batch, **chosen).report
            _line(first, batch, f"{label}, {weights} weights", report.baseline, report.optimized)


def zeros(path: Path, batch: int, data: Path) -> dict[str, float]:
    """The share of zeros in the output of each ReLU that is kept, as joined or pooled, by name."""
    from bnnopt.autodiff import TrainingOptions, build_training_step, make_optimizer
    from bnnopt.compiler.calibration import calibrate
    from bnnopt.frontend import load_forward

    forward = load_forward(path, batch)
    options = TrainingOptions("cross-entropy", make_optimizer("adam"))
    step = build_training_step(forward, options, path)
    densities = calibrate(step, forward.weights, batch, data)
    kinds = {str(v.name): node.op_type for node in step.graph for v in node.outputs}
    sparse = ("Relu", "Clip", "MaxPool", "Concat")
    return {
        f"{kinds[name]} {name.removesuffix('_output_0')}": 1 - density
        for name, density in densities.items()
        if kinds.get(name) in sparse
    }


def _with_weights(path: Path, session: Any) -> Path:
    """The model with the session's weights in place of its own."""
    import onnx

    model, weights = onnx.load(path), session.parameters()
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            array = np.ascontiguousarray(weights[tensor.name])
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    trained = path.with_name(f"trained_{path.name}")
    onnx.save(model, trained)
    return trained


# Running ----------------------------------------------------------------------------------------


def bits(name: str, path: Path, batch: int, options: argparse.Namespace) -> None:
    """Print whether -O1 has the bits of -O0 after some steps: losses, gradients, weights, state."""
    import bnnopt
    from bnnopt.verification import verify_folder

    pruned = {**LEVELS["-O1, bitmap alone"], "prune_stored": 0.5}
    for label, chosen in {**LEVELS, "control: --prune-stored 0.5": pruned}.items():
        if label == "-O0":
            continue
        folder = path.with_name("verified")
        bnnopt.optimize(path, batch_size=batch, **chosen).save(folder)
        found = verify_folder(folder, "native", n_steps=options.steps)
        answer = "yes" if found.bit_equal else "no"
        print(f"{path.stem} batch {batch}, {options.steps} steps, {label}: bit-equal {answer}",
              flush=True)  # fmt: skip


def steps(name: str, path: Path, batch: int, options: argparse.Namespace) -> None:
    """Print seconds a step, as contestants take turns, and how the resident set of each grows."""
    import bnnopt

    size, planned = int(path.stem.rpartition("_")[2]), {}
    options.ort_training, clock = None, "processor" if options.cpu_time else "wall"
    with contextlib.ExitStack() as stack:
        running = {}
        for label, chosen in {**LEVELS, EAGER: LEVELS["-O0"]}.items():
            folder = path.with_name(label)
            folder.mkdir()
            np.savez(folder / "batch.npz", x=_images(path, batch), labels=np.arange(batch) % 10)
            model = {"name": name, "size": size}
            (folder / "model.json").write_text(json.dumps(model))
            if label != EAGER:
                batch_file = str(folder / "batch.npz")
                optimized = bnnopt.optimize(path, batch_size=batch, calibrate=batch_file, **chosen)
                optimized.save(folder / "out")
                planned[label] = optimized.report.optimized.peak_bytes
                del optimized
            process = Process(EAGER if label == EAGER else "bnnopt", folder, options)
            stack.callback(process.close)
            if process.ready():
                running[label] = process
        rounds = [[p.step()[clock] for p in running.values()] for _ in range(options.steps + 1)]
        seconds = [min(times[1:]) for times in zip(*rounds, strict=True)]
        for (label, process), fastest in zip(running.items(), seconds, strict=True):
            print(
                f"{path.stem} batch {batch} {label}: {fastest:.3f} s, over -O0 "
                f"{fastest / seconds[0]:.2f}; resident growth {process.finish() / MIB:.1f} MiB, "
                f"planned {planned.get(label, 0) / MIB:.1f}",
                flush=True,
            )


def train(name: str, path: Path, batch: int, options: argparse.Namespace) -> None:
    """Train half of the steps, fine-tune the other half at each level, and compare the curves.

    On Fashion-MNIST, grey repeated to three channels: 28 x 28 pixels, in a border, or repeated.
    """
    import bnnopt

    images, labels = _fashion(int(path.stem.rpartition("_")[2]), batch * options.steps)
    half = batch * (options.steps // 2)
    sessions: dict[str, Any] = {}
    curves: dict[str, list[float]] = {}
    for label, chosen in {"before": LEVELS["-O1"], **LEVELS}.items():
        folder = path.with_name(label)
        bnnopt.optimize(path, batch_size=batch, **chosen).save(folder)
        session = bnnopt.TrainingSession(folder, threads=options.threads)
        if label == "before":
            _run(session, images[:half], labels, batch)
            path = _with_weights(path, session)
            continue
        curves[label] = _run(session, images[half:], labels[half:], batch, FINE_TUNING_RATE)
        sessions[label] = session
    for label, session in sessions.items():
        first, last = np.mean(curves[label][:5]), np.mean(curves[label][-5:])
        same = curves[label] == curves["-O0"] and _same_weights(session, sessions["-O0"])
        print(
            f"{name} batch {batch} {label}: {len(curves[label])} steps, loss {first:.4f} -> "
            f"{last:.4f}, curve and weights those of -O0: {same}; {session.memory}",
            flush=True,
        )


def _run(
    session: Any,
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    batch: int,
    rate: float | None = None,
) -> list[float]:
    starts = range(0, len(images), batch)
    return [session.step(images[i : i + batch], labels[i : i + batch], rate) for i in starts]


def _same_weights(first: Any, second: Any) -> bool:
    others = second.parameters()
    return all(
        others[key].tobytes() == array.tobytes() for key, array in first.parameters().items()
    )


def _fashion(size: int, n: int, skip: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    with gzip.open(FASHION / "train-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(16 + (skip + n) * 784), np.uint8, offset=16 + skip * 784)
    with gzip.open(FASHION / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + skip + n), np.uint8, offset=8 + skip)
    times = size // 28
    border = size - 28 * times
    grey = pixels.reshape(n, 28, 28).repeat(times, 1).repeat(times, 2)
    pads = (0, 0), (border // 2, border - border // 2), (border // 2, border - border // 2)
    scaled = np.pad(grey, pads).astype(np.float32) / 127.5 - 1
    return np.repeat(scaled[:, None], 3, 1), labels.astype(np.int64)


if __name__ == "__main__":
    main()
