"""Running a call through torch or NumPy. Both take and give torch tensors, so that tests read the same.

The tensors of a test are on the CPU. Where the operators run on a GPU (`pytest --backend=cuda`), a frontend
moves what goes in there and what comes out back.
"""

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
from megalodon_core import cuda, ops, runtime
from torch import Tensor

BACKENDS = ("cpu", "cuda", "moved")
"""`moved` is the CPU through the code that moves arrays to a GPU, so that this code is tested without one."""

Arrays = dict[str, Any]
Layout = Callable[[Any], Any]


class Result(NamedTuple):
    outputs: Arrays  # y and the parts of the state
    gradients: Arrays  # one per differentiable input, None where the input is


def as_given(x: Any) -> Any:
    """The layout that changes nothing."""
    return x


class Place:
    """Where operators run. A tensor is copied there and back, but for the plain CPU, where it is already."""

    device: torch.device | None = None

    @property
    def on_gpu(self) -> bool:
        return self.device is not None and self.device.type == "cuda"

    @property
    def type(self) -> str:
        """The type of device as torch names it."""
        return "cuda" if self.on_gpu else "cpu"

    def to(self, x: Tensor) -> Tensor:
        return x if self.device is None else x.to(self.device, copy=True)

    def back(self, x: Tensor) -> Tensor:
        if self.device is None:
            return x
        assert x.device == self.device
        return x.to("cpu", copy=True)


PLACE = Place()
"""Where the operators under test run; `use_backend` sets it once, before tests are collected."""


def use_backend(name: str) -> None:
    PLACE.device = {"cpu": None, "cuda": torch.device("cuda", 0), "moved": torch.device("cpu")}[name]


def why_no_gpu() -> str | None:
    """What keeps the operators from running on a GPU here; None where nothing does."""
    try:
        if not cuda.devices():
            return "there is no GPU"
    except RuntimeError as error:
        return str(error)
    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds no GPU"


class Torch:
    """The operators of a module on torch tensors, gradients by autograd."""

    name = "torch"

    def __init__(self, operators: ModuleType, place: Place, after: Callable[[], None] = lambda: None):
        self.operators, self.place, self.after = operators, place, after

    def forward(self, call: Call, layout: Layout = as_given) -> Arrays:
        """The outputs; `layout` is applied to every array that goes in, where it goes in."""
        outputs = self._outputs(call, lambda x: layout(self.place.to(x)))
        return {name: self.back(x) for name, x in outputs.items()}

    def back(self, x: Tensor) -> Tensor:
        return self.place.back(x)

    def _outputs(self, call: Call, convert: Callable[[Tensor], Tensor]) -> Arrays:
        outputs = getattr(self.operators, call.op)(**call.arguments(convert))
        self.after()
        return named_outputs(call, outputs)

    def run(self, call: Call, cotangents: Arrays, layout: Layout = as_given) -> Result:
        """Outputs, and gradients for the cotangents of those outputs that are named."""

        def placed(x: Tensor) -> Tensor:
            return layout(self.place.to(x.detach()))

        given = {name: x for name, x in call.inputs.items() if x is not None}
        leaves = {name: placed(x).requires_grad_() for name, x in given.items()}
        options = {name: placed(x) if isinstance(x, Tensor) else x for name, x in call.options.items()}
        outputs = self._outputs(Call(call.op, call.inputs | leaves, options), as_given)
        found = torch.autograd.grad(
            [outputs[name] for name in cotangents],
            list(leaves.values()),
            [placed(x) for x in cotangents.values()],
            materialize_grads=True,
        )
        self.after()
        gradients = {name: self.back(x) for name, x in zip(leaves, found, strict=True)}
        outputs = {name: self.back(x.detach()) for name, x in outputs.items()}
        return Result(outputs, dict.fromkeys(call.inputs) | gradients)

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

    def __init__(
        self,
        name: str,
        to: Callable[[Tensor], Any],
        back: Callable[[Any], Tensor],
        after: Callable[[], None] | None = None,
    ):
        self.name, self.to, self.back = name, to, back
        self.after = assert_the_backend_ran if after is None else after

    def forward(self, call: Call, layout: Layout = as_given) -> Arrays:
        outputs = getattr(ops, call.op)(**call.arguments(lambda x: layout(self.to(x))))
        self.after()
        return {name: self.back(x) for name, x in named_outputs(call, outputs).items()}

    def run(self, call: Call, cotangents: Arrays, layout: Layout = as_given) -> Result:
        outputs = self.forward(call, layout)
        cotangents = {name: layout(self.to(x)) for name, x in cotangents.items()}
        arguments = call.arguments(lambda x: layout(self.to(x)))
        found = getattr(ops, call.op).backward(nested_cotangents(call, cotangents), **arguments)
        self.after()
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


def assert_the_backend_ran() -> None:
    """On the CPU the forced instruction set; a GPU's kernels show by where their outputs are."""
    assert PLACE.on_gpu or runtime.last_isa() == runtime.isa()


def to_numpy(x: Tensor) -> np.ndarray:
    """The same memory as an array; bfloat16 is that of ml_dtypes."""
    x = x.detach()
    return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else x.numpy()


def from_numpy(x: np.ndarray) -> Tensor:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(x)


TORCH = Torch(ops, PLACE, after=assert_the_backend_ran)
TORCH_EXPLICIT = Explicit("explicit", lambda x: PLACE.to(x.detach()), PLACE.back)
NUMPY = Explicit("numpy", to_numpy, from_numpy)
REFERENCE = Torch(reference, Place())


def served() -> list[Torch | Explicit]:
    """The frontends of the backend: two, with gradients by autograd and by `ops.<op>.backward`."""
    return [TORCH, NUMPY if PLACE.device is None else TORCH_EXPLICIT]
