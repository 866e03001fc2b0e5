"""Running a call through torch or NumPy. Both take and give torch tensors, so that tests read the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import reference
import torch
from calls import STATES, Call
from megalodon_core import ops, runtime
from torch import Tensor

Arrays = dict[str, Any]
Layout = Callable[[Any], Any]


class Result(NamedTuple):
    outputs: Arrays  # y and the parts of the state
    gradients: Arrays  # one per differentiable input, None where the input is


def as_given(x: Any) -> Any:
    """The layout that changes nothing."""
    return x


class Torch:
    """The operators of a module on torch tensors, gradients by autograd."""

    name = "torch"

    def __init__(self, operators: ModuleType, after: Callable[[], None] = lambda: None):
        self.operators, self.after = operators, after

    def forward(self, call: Call, layout: Layout = as_given) -> Arrays:
        """The outputs; `layout` is applied to every array that goes in."""
        outputs = getattr(self.operators, call.op)(**call.arguments(layout))
        self.after()
        return named_outputs(call, outputs)

    def run(self, call: Call, cotangents: Arrays, layout: Layout = as_given) -> Result:
        """Outputs, and gradients for the cotangents of those outputs that are named."""
        given = {name: x for name, x in call.inputs.items() if x is not None}
        leaves = {name: layout(x.detach()).requires_grad_() for name, x in given.items()}
        options = {name: layout(x) if isinstance(x, Tensor) else x for name, x in call.options.items()}
        outputs = self.forward(Call(call.op, call.inputs | leaves, options))
        found = torch.autograd.grad(
            [outputs[name] for name in cotangents],
            list(leaves.values()),
            [layout(x) for x in cotangents.values()],
            materialize_grads=True,
        )
        self.after()
        gradients = dict.fromkeys(call.inputs) | dict(zip(leaves, found, strict=True))
        return Result({name: x.detach() for name, x in outputs.items()}, gradients)

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class Explicit:
    """The operators on other arrays, gradients by `ops.<op>.backward`."""

    def __init__(self, name: str, to: Callable[[Tensor], Any], back: Callable[[Any], Tensor]):
        self.name, self.to, self.back = name, to, back

    def forward(self, call: Call, layout: Layout = as_given) -> Arrays:
        outputs = getattr(ops, call.op)(**call.arguments(lambda x: layout(self.to(x))))
        assert_forced_isa_ran()
        return {name: self.back(x) for name, x in named_outputs(call, outputs).items()}

    def run(self, call: Call, cotangents: Arrays, layout: Layout = as_given) -> Result:
        outputs = self.forward(call, layout)
        cotangents = {name: layout(self.to(x)) for name, x in cotangents.items()}
        arguments = call.arguments(lambda x: layout(self.to(x)))
        found = getattr(ops, call.op).backward(nested_cotangents(call, cotangents), **arguments)
        assert_forced_isa_ran()
        assert found._fields == tuple(call.inputs)
        gradients = {name: None if x is None else self.back(x) for name, x in found._asdict().items()}
        return Result(outputs, gradients)

    @contextmanager
    def threads(self, count: int) -> Iterator[None]:
        before = runtime.num_threads()
        runtime.set_num_threads(count)
        try:
            yield
        finally:
            runtime.set_num_threads(before)


def named_outputs(call: Call, outputs: Any) -> Arrays:
    """What an operator returned, under the names of `Call.outputs`."""
    if len(call.outputs) == 1:
        outputs = (outputs,)
    elif len(STATES.get(call.op, ())) > 1:
        outputs = (outputs[0], *outputs[1])
    return dict(zip(call.outputs, outputs, strict=True))


def nested_cotangents(call: Call, cotangents: Arrays) -> Any:
    """Named cotangents as `backward` takes them: dy, or (dp, dq), or (dy, dstate or None)."""
    if call.op not in STATES:
        return cotangents["y"] if call.outputs == ("y",) else tuple(cotangents[name] for name in call.outputs)
    parts = tuple(cotangents[name] for name in call.outputs[1:] if name in cotangents)
    return cotangents["y"], None if not parts else parts[0] if call.outputs == ("y", "state") else parts


def assert_forced_isa_ran() -> None:
    assert runtime.last_isa() == runtime.isa()


def to_numpy(x: Tensor) -> np.ndarray:
    """The same memory as an array; bfloat16 is that of ml_dtypes."""
    x = x.detach()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def from_numpy(x: np.ndarray) -> Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


TORCH = Torch(ops, after=assert_forced_isa_ran)
TORCH_EXPLICIT = Explicit("torch", lambda x: x.detach(), as_given)
NUMPY = Explicit("numpy", to_numpy, from_numpy)
REFERENCE = Torch(reference)
