"""From a module to an ONNX file that says how PyTorch differentiates it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bnnopt.errors import BnnoptError, ModelError, UsageError
from bnnopt.frontend import one_line
from bnnopt.torch.example import Example
from bnnopt.torch.marking import PREFIX, mark
from bnnopt.torch.state import trained_names, untouched
from bnnopt.torch.tracing import Decisions, Tracer, mark_depends, traced

OPSET = 18  # the compiler's own: a converter would lose the metadata
EXPORTERS = ("torchscript", "torch.export")


class Traced(nn.Module):
    """A module of tensors in, tensors out, that runs under a tracer."""

    def __init__(self, module: nn.Module, example: Example) -> None:
        super().__init__()
        self.module = module
        self.example = example
        self.decisions: Decisions | None = None
        self.reached: set[int] = set()
        self.marks_norms = False
        self.training = True  # else the exporter makes one of parameters that are equal now

    def forward(self, *tensors: Tensor) -> Any:
        """The tensors of the module's outputs."""
        tracer = Tracer(self.decisions, self.marks_norms)
        for tensor in tensors:
            mark_depends(tensor)
        with traced(tracer):
            args, kwargs = self.example.filled(tensors)
            out = self.module(*args, **kwargs)
        self.decisions = tracer.decisions
        found = [value for value in tree_leaves(plain_outputs(out)) if isinstance(value, Tensor)]
        return found[0] if len(found) == 1 else tuple(found)


def plain_outputs(out: Any) -> Any:
    """An output class that is a mapping, as those of transformers are, as its values."""
    return list(out.values()) if isinstance(out, Mapping) else out


def export(
    module: nn.Module,
    example: Any,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    exporter: str | None = None,
) -> Path:
    """Write a module as an ONNX file that trains as PyTorch trains it.

    Parameters
    ----------
    module : torch.nn.Module
        As it is trained: in training mode, frozen batch norms in evaluation mode. Afterwards it is
        as it was, random generators included.
    example : Tensor, tuple or dict
        A batch: the argument of ``forward``, a tuple of its arguments (the last may be a dict of
        keyword arguments), or a dict of keyword arguments. What is no tensor is kept as it is.
    path : path
        The file to write; one that is there is replaced.
    dynamic_batch : bool
        Leave the batch size open; else it is that of the example.
    exporter : str, optional
        ``torchscript`` or ``torch.export``; if not given, the first that can write the module.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    ModelError
        If the module cannot be run or written, or what it does is not sure to be in the file.
    UsageError
        If the example has no tensor, or there is no such exporter.

    Examples
    --------
    >>> bnnopt.torch.export(model, x, "model.onnx")
    """
    if exporter not in (None, *EXPORTERS):
        raise UsageError(f"exporter {exporter!r}: expected {' or '.join(EXPORTERS)}")
    target = Path(os.fsdecode(path))
    check_module(module, example)
    inputs = Example.of(module, example)
    with untouched(module), _silent():
        wrapper = Traced(module, inputs)
        _probe(wrapper)
        model = _written(wrapper, dynamic_batch, exporter)
        _name_shared(model, wrapper)
        _check_complete(model, wrapper)
        _take_values(model, module)
        mark(model, trained_names(module))
    try:
        onnx.save(model, target)
    except OSError as error:
        raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
    return target


def _reached(out: Any, module: nn.Module) -> set[int]:
    """The parameters that autograd knows the outputs to depend on."""
    nodes = [v.grad_fn for v in tree_leaves(out) if isinstance(v, Tensor) and v.grad_fn is not None]
    seen, found = set(nodes), set()
    while nodes:
        node = nodes.pop()
        found.add(id(getattr(node, "variable", None)))
        more = {n for n, _ in node.next_functions if n is not None} - seen
        seen |= more
        nodes += more
    return found & {id(p) for p in module.parameters()}


def check_module(module: nn.Module, example: Any) -> int:
    """The batch size of the example.

    Raises
    ------
    UsageError
        If the module is none, or the example has no tensor.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(f"{type(module).__name__} found, expected a torch.nn.Module")
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("a scripted module has no Python code; expected the torch.nn.Module")
    return Example.of(module, example).batch_size


def _probe(wrapper: Traced) -> None:
    """A first run, which decides what each autograd function is, and checks it."""
    module = wrapper.module
    with untouched(module):
        before = {name: b.detach().clone() for name, b in module.named_buffers()}
        try:
            out = wrapper(*wrapper.example.tensors())
            wrapper.reached = _reached(out, module)
        except BnnoptError:
            raise
        except Exception as error:  # whatever the user's forward raises
            raise ModelError(
                f"{type(module).__name__}: forward does not run on the example: {one_line(error)}"
            ) from None
        _check_buffers(module, before)


def _take_values(model: onnx.ModelProto, module: nn.Module) -> None:
    """The module's own numbers: tracing has run it, which moves running statistics."""
    state = {f"{PREFIX}{name}": value for name, value in module.state_dict().items()}
    for tensor in model.graph.initializer:
        value = state.get(tensor.name)
        if value is not None and list(value.shape) == list(tensor.dims):
            array = value.detach().cpu().contiguous().numpy()
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))


def _name_shared(model: onnx.ModelProto, wrapper: Traced) -> None:
    """A parameter that several modules share has the first of its names, as in PyTorch."""
    first = {id(p): name for name, p in wrapper.named_parameters()}
    names = {name: first[id(p)] for name, p in wrapper.named_parameters(remove_duplicate=False)}
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]


def _check_complete(model: onnx.ModelProto, wrapper: Traced) -> None:
    """Every parameter that has a gradient is in the file."""
    held = {tensor.name for tensor in model.graph.initializer}
    for name, parameter in wrapper.named_parameters():
        if id(parameter) in wrapper.reached and name not in held:
            raise ModelError(
                f"{type(wrapper.module).__name__}: PyTorch's exporter lost parameter "
                f"{name.removeprefix(PREFIX)!r}; export with another exporter="
            )


def _check_buffers(module: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Running statistics are updated by the compiled step; what else changes would stand still."""
    norms = {
        f"{name}.{own}".lstrip(".")
        for name, m in module.named_modules()
        if isinstance(m, nn.modules.batchnorm._NormBase)
        for own in ("running_mean", "running_var", "num_batches_tracked")
    }
    for name, buffer in module.named_buffers():
        old = before.get(name)
        if name not in norms and old is not None and not _same(old, buffer):
            raise ModelError(
                f"{type(module).__name__}: forward changes buffer {name!r}, which a file would "
                "hold as it is now; expected buffers that only batch norms change"
            )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _written(wrapper: Traced, dynamic_batch: bool, exporter: str | None) -> onnx.ModelProto:
    writers: dict[str, Callable[[Traced, bool], onnx.ModelProto]] = {
        "torchscript": _by_torchscript,
        "torch.export": _by_torch_export,
    }
    reasons = []
    for name in [exporter] if exporter else EXPORTERS:
        try:
            with untouched(wrapper.module):
                return writers[name](wrapper, dynamic_batch)
        except BnnoptError:
            raise
        except Exception as error:  # exporters raise whatever they meet
            reasons.append(f"{name}: {one_line(error)}")
    raise ModelError(
        f"{type(wrapper.module).__name__}: PyTorch cannot write it as ONNX: {'; '.join(reasons)}"
    )


def _by_torchscript(wrapper: Traced, dynamic_batch: bool) -> onnx.ModelProto:
    from torch.onnx import register_custom_op_symbolic  # type: ignore[attr-defined]

    for name, sign in (("cosh", 1.0), ("sinh", -1.0)):
        register_custom_op_symbolic(f"aten::{name}", _hyperbolic(sign), OPSET)
    for name, operator in (("stop", "Stop"), ("straight_through", "StraightThrough")):
        register_custom_op_symbolic(f"bnnopt::{name}", _symbolic(operator), OPSET)
    batched = wrapper.example.batched if dynamic_batch else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            wrapper,
            wrapper.example.tensors(),
            path,
            dynamo=False,
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            input_names=wrapper.example.names,
            dynamic_axes={name: {0: "batch"} for name in batched},
        )
        return onnx.load(path)


def _symbolic(operator: str) -> Callable[..., Any]:
    def symbolic(g: Any, first: Any, *others: Any) -> Any:
        return g.op(f"bnnopt::{operator}", first, *others).setType(first.type())

    return symbolic


def _hyperbolic(sign: float) -> Callable[..., Any]:
    """(exp(x) + sign exp(-x)) / 2: the operators of ONNX have no gradients here."""

    def symbolic(g: Any, x: Any) -> Any:
        half = g.op("Constant", value_t=torch.tensor(0.5))
        up, down = g.op("Exp", x), g.op("Exp", g.op("Neg", x))
        total = g.op("Add" if sign > 0 else "Sub", up, down)
        return g.op("Mul", half, total).setType(x.type())

    return symbolic


def _by_torch_export(wrapper: Traced, dynamic_batch: bool) -> onnx.ModelProto:
    from bnnopt.torch.translations import TRANSLATIONS

    batched = set(wrapper.example.batched if dynamic_batch else [])
    names = wrapper.example.names
    shapes = tuple({0: torch.export.Dim.DYNAMIC} if n in batched else None for n in names)
    wrapper.marks_norms = True
    try:
        program = torch.export.export(
            wrapper, wrapper.example.tensors(), dynamic_shapes={"tensors": shapes}, strict=False
        )
    finally:
        wrapper.marks_norms = False
    found = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        optimize=False,
        input_names=names,
        custom_translation_table=dict(TRANSLATIONS),
    )
    assert found is not None
    return found.model_proto


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """No word of the exporters, which speak of what is no concern of the user."""
    quiet = io.StringIO()
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    kept = [os.dup(number) for number in (1, 2)]  # some of it is written by C++
    with open(os.devnull, "wb") as nowhere:
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(quiet),
            contextlib.redirect_stderr(quiet),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        for number, saved in zip((1, 2), kept, strict=True):
            os.dup2(saved, number)
            os.close(saved)
