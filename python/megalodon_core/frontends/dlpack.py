"""Arrays of any framework that speaks DLPack, on the CPU or a GPU: forward and explicit gradients.

Such a framework is CuPy. It needs `array.__dlpack__` and `array.__dlpack_device__`, and in the array's
namespace (`array.__array_namespace__()`, or the package of its type) `empty`, `from_dlpack` and the data
types by name. Outputs are made by `empty` on the framework's current device: that of the inputs, or an error.
Frameworks whose arrays cannot be written, as JAX's, are refused: memory of theirs may have other owners.

On a GPU the kernels run on the legacy default stream. The framework makes that stream wait for each array
that goes in, as `__dlpack__(stream=1)` asks it to; each array that comes out goes through `from_dlpack`,
which names the stream that will use it, and that stream is made to wait.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from megalodon_core import _core, cuda, runtime
from megalodon_core.spec import Spec

Array = object

_CPU, _CUDA = 1, 2  # DLPack's numbers
_STREAM = 1  # the legacy default stream, to DLPack as to CUDA
_NAMES = {code: name for name, code in _core.dtypes.items()}


def serves(array: object) -> bool:
    """Whether the array is of such a framework."""
    return hasattr(type(array), "__dlpack__") and hasattr(type(array), "__dlpack_device__")


def forward(
    spec: Spec, inputs: Sequence[Any], attributes: Sequence[Any], donate_state: bool
) -> tuple[Any, ...]:
    """Outputs of the operator."""
    donation = (True,) if donate_state else ()
    return _Call(spec, inputs[0]).run("forward", *inputs, *attributes, *donation)


def backward(
    spec: Spec, cotangents: Sequence[Any], inputs: Sequence[Any], attributes: Sequence[Any]
) -> tuple[Any, ...]:
    """One gradient per input, None where there is none."""
    call = _Call(spec, inputs[0])
    own = call.run("backward", *cotangents, *inputs, *spec.nothing_kept, *attributes)
    dy = call.copy(cotangents[0]) if spec.passes_dy_on else None
    return spec.spread_gradients(dy, inputs, own)


class _Call:
    """One call of an operator: the framework and device of its first array, and what it keeps alive."""

    def __init__(self, spec: Spec, array: Any) -> None:
        self.spec, self.array_type = spec, type(array)
        self.namespace = _namespace(array)
        self.device = _device(array)
        self.capsules: list[Any] = []
        usable = (_CPU, _CUDA) if cuda.kernels() is not None else (_CPU,)
        if self.device[0] not in usable:
            built = "a CPU or CUDA device" if len(usable) > 1 else "the CPU (this build has no CUDA kernels)"
            raise ValueError(
                f"{spec.name}: {spec.inputs[0].name}: expected an array on {built}, "
                f"got one on DLPack's device {self.device}"
            )
        if not _can_be_written(self.namespace):
            raise TypeError(
                f"{spec.name}: {spec.inputs[0].name}: expected an array that can be written, as outputs are, "
                f"got {type(array).__module__}.{type(array).__qualname__}"
            )

    def run(self, direction: str, *arguments: Any) -> tuple[Any, ...]:
        frontend = _core.Frontend(self.array_type, self.describe, self.allocate)
        if self.device[0] == _CPU:
            kernel = getattr(self.spec.kernels, direction)
            found: tuple[Any, ...] = kernel(frontend, runtime.num_threads(), *arguments)
            return found
        kernel = getattr(self.spec.cuda_kernels, direction)
        return tuple(map(self.handed_over, kernel(frontend, _STREAM, *arguments)))

    def describe(self, op: str, name: str, array: Any, strided: bool) -> tuple[Any, ...]:
        """The array for the core: as it is where its layout allows, else as a contiguous copy."""
        device = _device(array)
        if device != self.device:
            raise ValueError(
                f"{op}: {name}: expected an array on DLPack's device {self.device} like the first, "
                f"got {device}"
            )
        description = self.description(op, name, array)
        shape, strides = description[-2:]
        if len(shape) > _core.max_rank:
            raise ValueError(f"{op}: {name}: expected at most {_core.max_rank} axes, got {len(shape)}")
        dense_rows = strided and len(shape) > 0 and strides[-1] == 1 and min(strides) >= 0
        aligned = description[1] % array.dtype.itemsize == 0
        if not ((dense_rows or _is_contiguous(shape, strides)) and aligned):
            description = self.description(op, name, self.copy(array))
        return description

    def allocate(self, shape: tuple[int, ...], code: int) -> tuple[Any, ...]:
        """An uninitialized array for an output of the core."""
        array = self.namespace.empty(shape, dtype=getattr(self.namespace, _NAMES[code]))
        made = _device(array)
        if made != self.device:
            raise ValueError(
                f"{self.spec.name}: expected arrays on the framework's current device {made}, "
                f"got {self.device}"
            )
        return self.description(self.spec.name, "output", array)

    def description(self, op: str, name: str, array: Any) -> tuple[Any, ...]:
        """What the core wants to know of an array."""
        on_gpu = self.device[0] == _CUDA
        capsule = array.__dlpack__(stream=_STREAM) if on_gpu else array.__dlpack__()
        self.capsules.append(capsule)
        found = _core.describe_dlpack(capsule)
        if found is None:
            raise TypeError(f"{op}: {name}: expected one of {', '.join(_core.dtypes)}, got {array.dtype}")
        return (array, *found)

    def copy(self, array: Any) -> Any:
        """A contiguous array of the same values."""
        result = self.namespace.empty(array.shape, dtype=array.dtype)
        result[...] = array
        return result

    def handed_over(self, array: Any) -> Any:
        """The output for the framework's current stream."""
        return None if array is None else self.namespace.from_dlpack(_Output(array))


class _Output:
    """An output on its way to the framework that made it, which says on which stream it will use it."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[Any, Any]:
        device: tuple[Any, Any] = self.array.__dlpack_device__()
        return device

    def __dlpack__(self, *, stream: int | None = None, **options: Any) -> Any:
        if stream not in (None, -1, 0, _STREAM):
            module = cuda.kernels()
            assert module is not None
            module.wait(stream, _STREAM)
        return self.array.__dlpack__(stream=-1, **options)


def _namespace(array: Any) -> Any:
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return sys.modules[type(array).__module__.partition(".")[0]]


@cache
def _can_be_written(namespace: Any) -> bool:
    array = namespace.empty((1,), dtype=namespace.float32)
    try:
        array[...] = array
    except TypeError:
        return False
    return True


def _device(array: Any) -> tuple[int, int]:
    kind, index = array.__dlpack_device__()
    return int(kind), int(index)


def _is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True
