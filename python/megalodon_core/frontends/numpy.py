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


def _describe(op: str, name: str, array: np.ndarray, strided: bool) -> tuple[Any, ...]:
    """The array for the core: as it is where its layout allows, else as a contiguous copy."""
    if array.ndim > _core.max_rank:
        raise ValueError(f"{op}: {name}: expected at most {_core.max_rank} axes, got {array.ndim}")
    if array.dtype.name not in _CODES or not array.dtype.isnative:
        raise TypeError(
            f"{op}: {name}: expected one of {', '.join(_CODES)} in native byte order, got {array.dtype!r}"
        )
    step = array.itemsize
    whole_steps = all(stride % step == 0 for stride in array.strides)
    dense_rows = strided and whole_steps and array.ndim > 0 and array.strides[-1] == step
    if not (array.flags.c_contiguous or dense_rows) or not array.flags.aligned:
        array = np.array(array, order="C", copy=True)
    return _description(array)


def _description(array: np.ndarray) -> tuple[Any, ...]:
    code, strides = _CODES[array.dtype.name], tuple(stride // array.itemsize for stride in array.strides)
    return (array, array.ctypes.data, code, _CPU, 0, array.flags.writeable, array.shape, strides)


def empty(shape: tuple[int, ...], code: int) -> np.ndarray:
    """An uninitialized array for an output of the core."""
    return np.empty(shape, _dtype_of(code))


def _allocate(shape: tuple[int, ...], code: int) -> tuple[Any, ...]:
    return _description(empty(shape, code))


_FRONTEND = _core.Frontend(Array, _describe, _allocate)


def forward(
    spec: Spec, inputs: Sequence[Any], attributes: Sequence[Any], donate_state: bool
) -> tuple[Any, ...]:
    """Outputs of the operator."""
    donation = (True,) if donate_state else ()
    return spec.kernels.forward(_FRONTEND, runtime.num_threads(), *inputs, *attributes, *donation)


def backward(
    spec: Spec, cotangents: Sequence[Any], inputs: Sequence[Any], attributes: Sequence[Any]
) -> tuple[Any, ...]:
    """One gradient per input, None where there is none."""
    own = spec.kernels.backward(
        _FRONTEND, runtime.num_threads(), *cotangents, *inputs, *spec.nothing_kept, *attributes
    )
    dy = cotangents[0].copy() if spec.passes_dy_on else None
    return spec.spread_gradients(dy, inputs, own)
