"""One module per array framework; the only places that know one.

A frontend offers
    Array                                              the array type it serves
    forward(spec, inputs, attributes, donate_state)    -> outputs
    backward(spec, cotangents, inputs, attributes)     -> gradients, one per input that has one
with the flat inputs of a `Spec`. To the compiled core it introduces itself as a `_core.Frontend`, which says
how arrays are described and made.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from megalodon_core.frontends import dlpack as dlpack_frontend
from megalodon_core.frontends import numpy as numpy_frontend
from megalodon_core.spec import Spec

_TORCH = f"{__name__}.torch"


class Frontend(Protocol):
    """What a frontend module offers."""

    @property
    def Array(self) -> type[Any]: ...

    def forward(
        self, spec: Spec, inputs: tuple[Any, ...], attributes: Sequence[Any], donate_state: bool
    ) -> tuple[Any, ...]: ...

    def backward(
        self, spec: Spec, cotangents: Sequence[Any], inputs: Sequence[Any], attributes: Sequence[Any]
    ) -> tuple[Any, ...]: ...


def frontend_of(spec: Spec, array: object) -> Frontend:
    """The frontend that serves the first array of a call. Raises TypeError where there is none."""
    if isinstance(array, np.ndarray):
        return numpy_frontend
    if "torch" in sys.modules:
        torch_frontend = _torch_frontend()
        if isinstance(array, torch_frontend.Array):
            return torch_frontend
    if dlpack_frontend.serves(array):
        return dlpack_frontend
    raise TypeError(
        f"{spec.name}: {spec.inputs[0].name}: expected a NumPy array, a torch tensor or an array with "
        f"__dlpack__, got {type(array).__name__}"
    )


def _torch_frontend() -> Frontend:
    # Looked up, since to import at every call takes longer than many a kernel.
    found: Any = sys.modules.get(_TORCH) or importlib.import_module(_TORCH)
    frontend: Frontend = found
    return frontend
