"""One module per array framework; the only places that know one.

A frontend offers
    Array                                              the array type it serves
    forward(spec, inputs, attributes)                  -> outputs
    backward(spec, cotangents, inputs, attributes)     -> gradients, one per input that has one
with the flat inputs of a `Spec`. Arrays reach the compiled core as the tuple
    (address, dtype, device_type, device_index, writeable, shape, strides in elements),
and the core asks for outputs through `allocate(shape, dtype) -> (array, tuple)`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from megalodon_core._core import max_rank
from megalodon_core.frontends import numpy as numpy_frontend
from megalodon_core.spec import Spec


class Frontend(Protocol):
    """What a frontend module offers."""

    @property
    def Array(self) -> type[Any]: ...

    def forward(self, spec: Spec, inputs: Sequence[Any], attributes: Sequence[Any]) -> tuple[Any, ...]: ...

    def backward(
        self, spec: Spec, cotangents: Sequence[Any], inputs: Sequence[Any], attributes: Sequence[Any]
    ) -> tuple[Any, ...]: ...


def frontend_of(spec: Spec, inputs: Sequence[Any]) -> Frontend:
    """The frontend that serves the arrays of a call. Raises TypeError for other, mixed and missing ones."""
    frontend = _frontend(inputs[0])
    if frontend is None:
        raise TypeError(
            f"{spec.name}: {spec.inputs[0].name}: expected a NumPy array or a torch tensor, "
            f"got {type(inputs[0]).__name__}"
        )
    check_arrays(spec, [declared.name for declared in spec.inputs], inputs, frontend)
    for declared, array in zip(spec.inputs, inputs, strict=True):
        if array is None and not declared.optional:
            raise TypeError(f"{spec.name}: {declared.name}: expected an array, got None")
    return frontend


def check_arrays(spec: Spec, names: Sequence[str], arrays: Sequence[Any], frontend: Frontend) -> None:
    """Raises unless every array is None, or of the frontend's type with no more axes than the core takes."""
    for name, array in zip(names, arrays, strict=True):
        if array is None:
            continue
        if not isinstance(array, frontend.Array):
            raise TypeError(
                f"{spec.name}: {name}: expected {_type_name(frontend.Array)} like {spec.inputs[0].name}, "
                f"got {_type_name(type(array))}"
            )
        if array.ndim > max_rank:
            raise ValueError(f"{spec.name}: {name}: expected at most {max_rank} axes, got {array.ndim}")


def _type_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _frontend(array: object) -> Frontend | None:
    if isinstance(array, np.ndarray):
        return numpy_frontend
    if "torch" in sys.modules:
        from megalodon_core.frontends import torch as torch_frontend

        if isinstance(array, torch_frontend.Array):
            return torch_frontend
    return None
