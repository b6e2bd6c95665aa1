"""What a user hands to a session, checked and in the dtypes that the programs take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnnopt.errors import UsageError
from bnnopt.runtime.format import Program, ValueSpec

Array = NDArray[np.generic]
Data = ArrayLike | Mapping[str, ArrayLike]


def fitted_inputs(
    x: Data, specs: Sequence[ValueSpec], who: str, bounds: Mapping[str, int]
) -> tuple[Array, ...]:
    """The data inputs in the order of `specs`, each with the same number of samples.

    Parameters
    ----------
    x : array, or mapping of input names to arrays
        A mapping where the model has several inputs.
    who : str
        The method, for the message.
    bounds : mapping of str to int
        What `index_bounds` says of the program.

    Raises
    ------
    UsageError
        If a name, shape, dtype or index does not fit.
    """
    if len(specs) == 1 and not isinstance(x, Mapping):
        array = fitted(x, specs[0], f"{who}: x")
        if specs[0].name in bounds:
            check_indices(array, bounds[specs[0].name], f"{who}: x")
        return (array,)
    given = x if isinstance(x, Mapping) else {specs[0].name: x}
    names = [spec.name for spec in specs]
    if sorted(given) != sorted(names):
        found = f"inputs {', '.join(map(str, given))}" if isinstance(x, Mapping) else "one array"
        raise UsageError(f"{who}: x is {found}, expected a mapping with {', '.join(names)}")
    labels = names if isinstance(x, Mapping) else ["x"]
    arrays = tuple(
        fitted(given[spec.name], spec, f"{who}: {label}")
        for spec, label in zip(specs, labels, strict=True)
    )
    for array, label in zip(arrays, labels, strict=True):
        if len(array) != len(arrays[0]):
            raise UsageError(
                f"{who}: {label} has {len(array)} samples, expected {len(arrays[0])} as {labels[0]}"
            )
    for array, spec, label in zip(arrays, specs, labels, strict=True):
        if spec.name in bounds:
            check_indices(array, bounds[spec.name], f"{who}: {label}")
    return arrays


def fitted(x: ArrayLike, spec: ValueSpec, what: str) -> Array:
    """`x` as an array of the dtype of `spec` with any number of samples.

    Raises
    ------
    UsageError
        If its shape or dtype does not fit, it holds NaN or infinity, or bytes that are no floats
        yet.
    """
    array = as_array(x, what)
    expected = spec.shape_at(1)[1:]
    if array.ndim == 0 or array.shape[1:] != expected:
        sizes = ", ".join(map(str, ("n", *expected)))
        raise UsageError(f"{what} has shape {list(array.shape)}, expected [{sizes}]")
    _check_normalized(array, spec, what)
    return _in_dtype(array, spec, what)


def _check_normalized(array: NDArray[Any], spec: ValueSpec, what: str) -> None:
    """Refuse bytes beyond 0 and 1 where floats are fed: images that nobody has normalised."""
    if array.dtype != np.uint8 or np.dtype(spec.dtype).kind != "f":
        return
    if (largest := int(array.max(initial=0))) > 1:
        raise UsageError(
            f"{what} is uint8 and reaches {largest}, expected {spec.dtype}, normalised as in "
            "training: (x / 127.5 - 1).astype('float32') is what bnnopt train does; or optimize "
            "with --input uint8; x.astype('float32') takes it as it is"
        )


def fitted_labels(
    y: ArrayLike | None,
    spec: ValueSpec | None,
    batch: int,
    classes: int,
    ignored: int | None = None,
) -> tuple[Array, ...]:
    """The labels of a batch; none where the graph has its own loss (`spec` is None).

    Raises
    ------
    UsageError
        If they are missing, or their shape, dtype or range does not fit.
    """
    if spec is None:
        if y is not None:
            raise UsageError("step: y is given, but the graph has its own loss; leave y out")
        return ()
    if y is None:
        raise UsageError("step: y is missing; expected one label a sample")
    labels = as_array(y, "step: y")
    shape = spec.shape_at(batch)
    if labels.shape != shape:
        hint = "; one-hot? y.argmax(1)" if labels.shape[:-1] == shape else ""
        raise UsageError(f"step: y has shape {list(labels.shape)}, expected {list(shape)}{hint}")
    if spec.dtype != "int64":
        return (_in_dtype(labels, spec, "step: y"),)
    check_classes(labels, classes, "step: y", ignored)
    return (labels.astype(np.int64, copy=False),)


def check_classes(
    labels: NDArray[Any], classes: int, what: str, ignored: int | None = None
) -> None:
    """Refuse what are no integers from 0 to ``classes - 1``, nor `ignored`.

    Raises
    ------
    UsageError
        If the dtype or range does not fit.
    """
    if labels.dtype.kind not in "iu":
        raise UsageError(f"{what} is {labels.dtype}, expected integer class labels")
    if ignored is not None:
        labels = labels[labels != ignored]
    if labels.size and (labels.min() < 0 or labels.max() >= classes):
        raise UsageError(
            f"{what} has labels from {labels.min()} to {labels.max()}, expected 0 to {classes - 1}"
        )


def index_bounds(program: Program) -> dict[str, int]:
    """The length of the axis that a data input indexes, for those that a Gather reads."""
    source = {i: program.values[i].name for i in program.roles["data"]}
    bounds: dict[str, int] = {}
    for step in program.steps:
        if (step.is_view or step.operator == "Cast") and step.inputs[0] in source:
            source[step.outputs[0]] = source[step.inputs[0]]
        if step.operator == "Gather" and step.inputs[1] in source:
            name, axis = source[step.inputs[1]], step.attributes.get("axis", 0)
            length = program.values[step.inputs[0]].shape_at(program.batch_size)[int(axis)]  # type: ignore[arg-type]
            bounds[name] = min(length, bounds.get(name, length))
    return bounds


def check_indices(array: Array, length: int, what: str) -> None:
    """Refuse indices that an axis of this length does not have; negative ones count from its end.

    Raises
    ------
    UsageError
        If there is one.
    """
    if array.size and not (-length <= array.min() and array.max() < length):
        raise UsageError(
            f"{what} has indices from {array.min()} to {array.max()}, expected "
            f"{-length} to {length - 1}"
        )


def repeated(arrays: Sequence[Array], times: int) -> tuple[Array, ...]:
    """Each array's samples so many times, one round after another."""
    return tuple(np.concatenate([array] * times) for array in arrays)


def checked_rate(rate: Any) -> float:
    """The learning rate as a number.

    Raises
    ------
    UsageError
        If it is none, or negative, or not finite in float32.
    """
    try:
        number = float(rate)
    except (OverflowError, TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= float(np.finfo(np.float32).max):
        raise UsageError(f"step: lr is {shown(rate)}, expected a finite number, 0 or more")
    return number


def shown(value: object) -> str:
    """A value for a message, cut where it goes on and on."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an int of more digits than Python writes
        return f"a {type(value).__name__} of too many digits"
    return text if len(text) <= 60 else f"{text[:60]} .."


def as_array(x: ArrayLike, what: str) -> NDArray[Any]:
    """`x` as numpy takes it.

    Raises
    ------
    UsageError
        If its rows differ in length.
    """
    try:
        return np.asarray(x)
    except (TypeError, ValueError):
        raise UsageError(f"{what} is no array: its rows differ in length") from None


def _in_dtype(array: NDArray[Any], spec: ValueSpec, what: str) -> Array:
    if array.dtype == spec.dtype:
        check_finite(array, what)
        return array
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        hint = "; images as they are stored, or optimize without --input uint8"
        raise UsageError(
            f"{what} is {array.dtype}, expected {spec.dtype}{hint if spec.dtype == 'uint8' else ''}"
        )
    with np.errstate(over="ignore"):
        fitting = array.astype(spec.dtype, copy=False)
    check_finite(fitting, what)
    return fitting


def check_finite(array: NDArray[Any], what: str) -> None:
    """Refuse NaN and infinity: a network of signs would go on with them as if nothing was.

    The sum is one pass without a copy; it alone may overflow.

    Raises
    ------
    UsageError
        If there is one; it is named with its place.
    """
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.add.reduce(array, axis=None)
    if math.isfinite(total) or np.isfinite(array).all():
        return
    place = [int(i) for i in np.argwhere(~np.isfinite(array))[0]]
    found = f"{array[tuple(place)]} at {place}"
    raise UsageError(f"{what} has NaN or infinity, {found}; expected finite numbers")
