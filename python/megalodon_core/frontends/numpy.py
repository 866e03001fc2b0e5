"""NumPy arrays: forward and explicit gradients. bfloat16 arrays are those of the package ml_dtypes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from megalodon_core import _core, runtime
from megalodon_core.spec import Spec

Array = np.ndarray

_CODES: dict[str, int] = _core.dtypes
_CPU = 1  # DLPack's number


def _dtype_of(code: int) -> np.dtype[Any]:
    name: Any = next(name for name, value in _CODES.items() if value == code)
    if name == "bfloat16":
        import ml_dtypes

        name = ml_dtypes.bfloat16
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


def _describe(spec: Spec, name: str, array: np.ndarray, strided: bool) -> tuple[Any, ...]:
    code = _CODES.get(array.dtype.name)
    if code is None or not array.dtype.isnative:
        raise TypeError(
            f"{spec.name}: {name}: expected one of {', '.join(_CODES)} in native byte order, "
            f"got {array.dtype!r}"
        )
    step = array.itemsize
    whole_steps = all(stride % step == 0 for stride in array.strides)
    dense_rows = strided and whole_steps and array.ndim > 0 and array.strides[-1] == step
    if not (array.flags.c_contiguous or dense_rows) or not array.flags.aligned:
        array = np.array(array, order="C", copy=True)
    strides = tuple(stride // step for stride in array.strides)
    # The array itself rides along, so that a copy made here lives until the call returns.
    return (_Address(array), code, _CPU, 0, array.flags.writeable, array.shape, strides)


class _Address(int):
    """The address of an array's memory that keeps the array alive."""

    array: np.ndarray

    def __new__(cls, array: np.ndarray) -> _Address:
        address = super().__new__(cls, array.ctypes.data)
        address.array = array
        return address


def empty(shape: tuple[int, ...], code: int) -> np.ndarray:
    """An uninitialized array for an output of the core."""
    return np.empty(shape, _dtype_of(code))


def _allocate(shape: tuple[int, ...], code: int) -> tuple[np.ndarray, tuple[Any, ...]]:
    array = empty(shape, code)
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return array, (array.ctypes.data, code, _CPU, 0, array.flags.writeable, shape, strides)


def _describe_all(spec: Spec, inputs: Sequence[Any]) -> list[Any]:
    return [
        None if array is None else _describe(spec, declared.name, array, spec.strided and declared.activation)
        for declared, array in zip(spec.inputs, inputs, strict=True)
    ]


def forward(spec: Spec, inputs: Sequence[Any], attributes: Sequence[Any]) -> tuple[Any, ...]:
    """Outputs of the operator."""
    kernel = getattr(_core, f"{spec.name}_forward")
    outputs: tuple[Any, ...] = kernel(
        _allocate, runtime.num_threads(), *_describe_all(spec, inputs), *attributes
    )
    return outputs


def backward(
    spec: Spec, cotangents: Sequence[Any], inputs: Sequence[Any], attributes: Sequence[Any]
) -> tuple[Any, ...]:
    """One gradient per input, None where there is none."""
    kernel = getattr(_core, f"{spec.name}_backward")
    described = [
        None if array is None else _describe(spec, f"d{name}", array, spec.strided and name == "y")
        for name, array in zip(spec.cotangents, cotangents, strict=True)
    ]
    own = kernel(_allocate, runtime.num_threads(), *described, *_describe_all(spec, inputs), *attributes)
    return spec.spread_gradients(cotangents[0].copy(), inputs, own)
