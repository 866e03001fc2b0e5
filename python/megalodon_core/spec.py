"""What an operator is, as data: its inputs, attributes, outputs and gradients.

Frontends serve every operator from its `Spec` alone, so an operator is described once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from megalodon_core import _core, cuda

# (shape, type) of an output; the type is "activation", "parameter" (float32, or float64 beside float64
# activations), "int64" or "float64".
Inferred = tuple[tuple[int, ...], str]


@dataclass(frozen=True)
class Input:
    """One array argument of the compiled function."""

    name: str
    optional: bool = False
    activation: bool = False  # has the call's activation type, to which autocast promotes
    gradient: str | None = "own"  # "own": an output of backward; the name of another input: the same gradient
    #                               as it; "dy": the cotangent itself; None: not differentiable


class Kernels(NamedTuple):
    """`forward(frontend, threads, *inputs, *attributes)` gives the outputs,
    `backward(frontend, threads, *cotangents, *inputs, *kept, *attributes)` the own gradients of the inputs.
    Where there is something to keep, `forward(..., keep=True)` gives it after the outputs, and `backward`
    takes None for each of it as well. Kernels of a GPU take the address of a CUDA stream in the place of
    threads.
    """

    forward: Callable[..., tuple[Any, ...]]
    backward: Callable[..., tuple[Any, ...]]


@dataclass(frozen=True)
class Spec:
    """An operator of the compiled core."""

    name: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]  # the first is y
    infer: Callable[[Sequence[Any], Sequence[Any]], list[Inferred]]  # outputs and kept, from the inputs
    attributes: tuple[tuple[str, type], ...] = ()
    y_like: int = 0  # the input whose shape and type y has
    integer_outputs: tuple[str, ...] = ()  # outputs without a cotangent
    kept: tuple[str, ...] = ()  # what forward can hand to backward beside the inputs

    @cached_property
    def kernels(self) -> Kernels:
        """The compiled functions of the CPU."""
        return Kernels(getattr(_core, f"{self.name}_forward"), getattr(_core, f"{self.name}_backward"))

    @cached_property
    def cuda_kernels(self) -> Kernels:
        """The compiled functions of the GPU, in a build that has them."""
        module = cuda.kernels()
        return Kernels(getattr(module, f"{self.name}_forward"), getattr(module, f"{self.name}_backward"))

    @property
    def nothing_kept(self) -> tuple[None, ...]:
        """What backward takes in the place of what forward has not kept."""
        return (None,) * len(self.kept)

    @property
    def cotangents(self) -> tuple[str, ...]:
        """Names of the outputs that have a cotangent."""
        return tuple(self.outputs[i] for i in self.differentiable_outputs)

    @cached_property
    def differentiable_outputs(self) -> tuple[int, ...]:
        """Indices of the outputs that have a cotangent."""
        return tuple(i for i, name in enumerate(self.outputs) if name not in self.integer_outputs)

    def own_gradients(self, inputs: Sequence[Any]) -> list[int]:
        """Indices of the inputs whose gradients the compiled backward returns for this call, in order."""
        return [
            i
            for i, (declared, array) in enumerate(zip(self.inputs, inputs, strict=True))
            if declared.gradient == "own" and array is not None
        ]

    @cached_property
    def passes_dy_on(self) -> bool:
        """Whether the cotangent of y itself is the gradient of an input."""
        return any(declared.gradient == "dy" for declared in self.inputs)

    @cached_property
    def _gradient_slots(self) -> tuple[int, ...]:
        """For each input the place of its gradient in: own gradients of all inputs, then None, then dy."""
        names = [declared.name for declared in self.inputs] + [None, "dy"]
        return tuple(
            i if declared.gradient == "own" else names.index(declared.gradient)
            for i, declared in enumerate(self.inputs)
        )

    def spread_gradients(self, dy: Any, inputs: Sequence[Any], own: Sequence[Any]) -> tuple[Any, ...]:
        """One gradient per input from the compiled backward's: None for absent and integer inputs."""
        found = [*(None for _ in self.inputs), None, dy]
        for i, gradient in zip(self.own_gradients(inputs), own, strict=True):
            found[i] = gradient
        return tuple(found[slot] for slot in self._gradient_slots)
