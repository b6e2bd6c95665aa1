"""Run a module so that every gradient that stops, or goes another way, leaves a marker."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionMeta
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import CheckpointFunction

from bnnopt.errors import ModelError
from bnnopt.torch.chance import WRITTEN_OUT
from bnnopt.torch.decompositions import DECOMPOSED, tensor_roots
from bnnopt.torch.functions import Call, Estimator, Function, recognize
from bnnopt.torch.markers import batch_norm, stop, straight_through

_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]
_GET_DATA = Tensor.data.__get__  # type: ignore[attr-defined]
_ALIASES = {Tensor.detach, torch.detach}
_DETACHES = {Tensor.detach_, torch.detach_}
_READS = {
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__contains__),
    *(Tensor.item, Tensor.tolist, Tensor.numpy, torch.is_nonzero, torch.equal, torch.allclose),
}
_INSIDE = tuple(str(Path(file).parent) for file in (str(torch.__file__), __file__))
_DEPENDS = "_bnnopt_depends"
_IS_ALIAS = "_bnnopt_alias"
_OWN = "_bnnopt_forward"


@dataclass
class Decisions:
    """What the first run finds of each call of a function; later runs take it in order.

    For each call, by name of the function and output, the estimators of its inputs.
    """

    estimators: list[dict[tuple[str, int], dict[int, Estimator]]] = field(default_factory=list)


class Tracer(TorchFunctionMode):
    """Puts markers behind what a module calls; with `decisions` None it decides, and checks."""

    def __init__(self, decisions: Decisions | None = None, marks_norms: bool = False) -> None:
        super().__init__()
        self.marks_norms = marks_norms
        self.is_first = decisions is None
        self.decisions = decisions or Decisions()
        self._n_calls = 0
        self._is_paused = False
        self.is_off = False
        self._has_grad = torch.is_grad_enabled()
        self._inside: list[Function] = []
        self._replaced: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called for every function of torch."""
        if self.is_off or func is torch._C._set_grad_enabled:
            self._has_grad = args[0] if func is torch._C._set_grad_enabled else self._has_grad
            return func(*args, **(kwargs or {}))
        if func == _GET_DATA:  # which tracing takes for a constant
            func = Tensor.detach
        args, kwargs = self._current(args), self._current(kwargs or {})
        read = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if func is Tensor.item and _is_real(args[0]) and depends(args[0]):
            with self._pause():
                return self._noted(stop(args[0].detach().squeeze()), read)
        if self.is_first:
            _check_reads(func, read)
        with self._pause():
            other = DECOMPOSED[func](*args, **kwargs) if func in DECOMPOSED else None
        if self._is_paused:
            return self._noted(func(*args, **kwargs) if other is None else other, read)
        if func == _SET_DATA:
            return self._set_data(*args)
        _check_changes(func, args, kwargs)
        marked = self._marked_norm(func, args, kwargs) if other is None else other
        if func in WRITTEN_OUT:
            marked = WRITTEN_OUT[func](torch.rand_like, *args, **kwargs)
        out = func(*args, **kwargs) if marked is None else marked
        if func in _DETACHES:
            self._replaced[id(args[0])] = (args[0], stop(args[0].detach()))
        elif torch.is_grad_enabled() is False or func in _ALIASES or _is_real(out):
            out = self._stopped(func, read, out)
        return self._noted(out, read)

    def _marked_norm(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The marker of a batch norm in training mode, where the exporter needs one."""
        if not self.marks_norms or func is not F.batch_norm:
            return None
        bound = inspect.signature(func).bind(*args, **kwargs)
        bound.apply_defaults()
        x, mean, var, scale, bias, training, momentum, eps = bound.arguments.values()
        if not training:
            return None
        shape, like = (x.shape[1],), {"dtype": x.dtype}
        scale = torch.ones(shape, **like) if scale is None else scale
        bias = torch.zeros(shape, **like) if bias is None else bias
        mean = torch.zeros(shape, **like) if mean is None else mean
        var = torch.ones(shape, **like) if var is None else var
        with self._pause():
            return batch_norm(x, scale, bias, mean, var, momentum, eps)

    def _current(self, values: Any) -> Any:
        """The operands, those whose ``data`` was set in their new form."""
        if not self._replaced:
            return values

        def replaced(value: Any) -> Any:
            return self._replaced[id(value)][1] if id(value) in self._replaced else value

        return tree_map(replaced, values)

    def _noted(self, out: Any, read: list[Tensor]) -> Any:
        """Remember what depends on data or parameters."""
        if any(depends(value) for value in read):
            for value in tree_leaves(out):
                if isinstance(value, Tensor):
                    mark_depends(value)
        return out

    def _stopped(self, func: Any, read: list[Tensor], out: Any) -> Any:
        """The outputs, those behind a marker that autograd does not reach."""
        if not any(value.requires_grad for value in read):
            return out

        def stopped(value: Any) -> Any:
            if not _is_real(value) or value.requires_grad or any(value is v for v in read):
                return value
            with self._pause():
                marked = stop(value.detach())
            if func in _ALIASES:
                setattr(marked, _IS_ALIAS, True)
            return marked

        return tree_map(stopped, out)

    def _set_data(self, tensor: Tensor, value: Tensor) -> None:
        """``x.data = b``: from here on x has the value of b, and its own gradient."""
        if tensor.requires_grad and self.is_first and not depends(value):
            raise ModelError(
                f"{_place()}: sets the data of a parameter to a tensor that is not computed from "
                "parameters, as a second forward of modules that keep weight.org does; export "
                "the module before its first forward"
            )
        with self._pause():
            new = straight_through(value.detach(), tensor) if tensor.requires_grad else value
        self._replaced[id(tensor)] = (tensor, new)
        self._noted(new, [tensor, value])

    @contextlib.contextmanager
    def _pause(self) -> Iterator[None]:
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def is_inside(self, function: Function) -> bool:
        """Whether the tracer is running the function itself."""
        return function in self._inside

    @contextlib.contextmanager
    def outside(self, function: Function) -> Iterator[None]:
        """What calls a function has gradients enabled or not; a forward always has not."""
        had_grad = self._has_grad
        self._inside.append(function)
        torch.set_grad_enabled(had_grad)
        try:
            yield
        finally:
            self._inside.pop()
            torch.set_grad_enabled(False)
            self._has_grad = had_grad

    def function(self, function: Function, inputs: tuple[Any, ...]) -> Any:
        """An autograd function: its value, and the gradient of its backward."""
        if function is CheckpointFunction:
            return inputs[0](*inputs[2:])
        inputs = self._current(inputs)
        with self._pause():
            call = Call(function, inputs)
            outputs = tuple(self._output(call, j, y) for j, y in enumerate(call.outputs))
        self._n_calls += 1
        result = outputs if isinstance(call.result, tuple) else outputs[0]
        return self._noted(result, [v for v in inputs if isinstance(v, Tensor)])

    def _output(self, call: Call, index: int, y: Any) -> Any:
        if not _is_real(y) or not call.wanted:
            return y
        if not torch.is_grad_enabled() or not call.context.is_differentiable(y):
            return stop(y.detach())
        estimators = self._estimators(call, index)
        if not estimators:
            return stop(y.detach())
        if "linear" in {estimator.name for estimator in estimators.values()}:
            terms = [call.transposed(index, i) for i in estimators]
        else:
            factors = call.factors(index) or {}
            terms = [estimators[i].integral(call.inputs[i], h) for i, h in factors.items()]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return straight_through(y.detach(), total)

    def _estimators(self, call: Call, index: int) -> dict[int, Estimator]:
        """What is done for each input, which the first run decides and later ones look up."""
        known = self.decisions.estimators
        if self.is_first:
            self.is_off = True
            try:
                found = recognize(call, index)
            finally:
                self.is_off = False
            if len(known) <= self._n_calls:
                known.extend({} for _ in range(self._n_calls + 1 - len(known)))
            known[self._n_calls][call.name, index] = found
            return found
        if self._n_calls >= len(known) or (call.name, index) not in known[self._n_calls]:
            raise ModelError(
                f"{call.where}: called in one run of the module and not in the next; expected a "
                "forward that does the same each time"
            )
        return known[self._n_calls][call.name, index]


def _is_real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def depends(value: Tensor) -> bool:
    """Whether a tensor is a parameter, data, or computed from them."""
    return isinstance(value, torch.nn.Parameter) or hasattr(value, _DEPENDS)


def mark_depends(value: Tensor) -> None:
    """Note that a tensor is data, or computed from it."""
    setattr(value, _DEPENDS, True)


def _check_reads(func: Any, read: list[Tensor]) -> None:
    if func in _READS and any(depends(value) for value in read):
        raise ModelError(
            f"{_place()}: {func.__name__} looks at the numbers of a tensor, and a file would hold "
            "what it found in the example; expected a forward of tensor operators, such as "
            "torch.where"
        )


def _check_changes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse what changes a value behind the back of autograd."""
    name = str(getattr(func, "__name__", ""))
    in_place = (name.endswith("_") and not name.endswith("__")) or (
        name == "__setitem__" or (name.startswith("__i") and name not in _NOT_IN_PLACE)
    )
    target = args[0] if args else None
    if name in ("requires_grad_", "detach_", "retain_grad") or not isinstance(target, Tensor):
        return
    if in_place and (
        hasattr(target, _IS_ALIAS) or (target.requires_grad and not torch.is_grad_enabled())
    ):
        raise ModelError(
            f"{_place()}: {name} changes a tensor that is detached from its gradient, in place; "
            "expected the changed value in a tensor of its own"
        )


_NOT_IN_PLACE = {"__index__", "__int__", "__invert__", "__init__", "__iter__"}


def _place() -> str:
    """The line of the user's code that is running."""
    for frame in inspect.stack(0)[1:]:
        if not frame.filename.startswith((*_INSIDE, "<")):
            return f"{frame.filename}:{frame.lineno}"
    return "the module"


@contextlib.contextmanager
def traced(tracer: Tracer) -> Iterator[None]:
    """Run what is inside under a tracer, autograd functions included.

    A module may hold ``Fn.apply`` itself, which is built in. It calls ``Fn.forward``, so that is
    what is replaced: of every class, and of those that are made meanwhile.
    """
    made: Any = FunctionMeta.__init__
    replaced: list[tuple[Function, dict[str, Any]]] = []

    def replace(function: Function) -> None:
        own = vars(function).get("forward")
        replaced.append((function, {} if own is None else {"forward": own}))
        function.forward = staticmethod(_hooked(function, tracer))  # type: ignore[method-assign]

    def make(function: Any, *args: Any) -> None:
        made(function, *args)
        replace(function)

    for function in _functions(torch.autograd.Function):
        replace(function)
    FunctionMeta.__init__ = make  # type: ignore[method-assign]
    try:
        with tensor_roots(), tracer:
            yield
    finally:
        FunctionMeta.__init__ = made  # type: ignore[method-assign]
        for function, own in reversed(replaced):
            del function.forward
            for name, value in own.items():
                setattr(function, name, value)


def _functions(base: Function) -> Iterator[Function]:
    """The users' classes below `base`, and PyTorch's own for checkpoints."""
    for function in base.__subclasses__():
        is_users = function.__module__.split(".")[0] not in ("torch", "bnnopt")
        if function is CheckpointFunction or is_users:
            yield function
        yield from _functions(function)


def _hooked(function: Function, tracer: Tracer) -> Any:
    """A forward that goes to the tracer, but for one that the tracer itself calls."""
    forward = getattr(function.forward, _OWN, function.forward)  # a base's may be hooked already
    has_setup = function.setup_context is not torch.autograd.Function.setup_context

    def hooked(*args: Any) -> Any:
        inputs = args if has_setup else args[1:]
        if tracer.is_off or tracer.is_inside(function):
            return forward(*args)
        with tracer.outside(function):
            return tracer.function(function, inputs)

    setattr(hooked, _OWN, forward)
    return hooked
