"""One operator beside its peers: results are compared first, then all sides are timed in turn.

All of it is on torch's default device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from megalodon_core.bench import ceilings
from megalodon_core.bench.operators import TINY, Case, Function, Size, Tensors
from megalodon_core.bench.timing import Clock, Sample, interleave

_SEED = 20240412
_NAIVE_MULTIPLE = 2
_ROUNDING = {
    (torch.float32, torch.float64): 1e-5,
    (torch.float32, torch.float32): 1e-4,
    (torch.bfloat16, torch.float64): 2.0**-7,
    (torch.bfloat16, torch.float32): 2.0**-7,
}
"""By activations' type and the exact side's: what any result may lose, relative to its norm."""

DIRECTIONS = ("forward", "backward", "both")
"""What a row is about; "both" is forward and backward together, as in training."""


class DisagreementError(RuntimeError):
    """Sides compute different numbers, so their times mean nothing; `side` is the one that is wrong."""

    def __init__(self, message: str, side: str = "ours") -> None:
        super().__init__(message)
        self.side = side


class Side(NamedTuple):
    """One implementation with its inputs.

    `results()` runs once what is timed and returns the outputs of a call without a graph and, if it can be
    differentiated, those of one with a graph, then all gradients, None where a peer has other variables.
    `samples` time "forward" (nothing differentiated) and the parts of a training call, "recorded" (forward
    with a graph), "backward" (from the return of forward) and "both".
    """

    results: Callable[[], Sequence[Tensor | None]]
    samples: tuple[Sample, ...]


Key = tuple[str, str, int]
"""Type of the activations, name of the side (or "floor"), number of its sample."""

MakeSide = Callable[[Case, Size, Tensors, Tensors], Side | None]
"""A peer of a case from its inputs and the outputs' cotangents; None where the peer lacks the operator."""


@dataclass(frozen=True)
class Row:
    """One case in one type and direction: median seconds of itself, its floor and its peers."""

    case: str
    dtype: str
    direction: str
    seconds: float
    floor: float
    peers: Mapping[str, float]
    runs: Mapping[str, int]

    @property
    def share(self) -> float:
        """The share of the floor: 1 is as fast as it can be."""
        return self.floor / self.seconds

    def ratio(self, peer: str) -> float:
        """How many times as long the peer takes."""
        return self.peers[peer] / self.seconds


def torch_side(function: Function, inputs: Tensors, cotangents: Tensors, differentiable: bool) -> Side:
    """A side written in torch."""
    inputs = tuple(x.detach().requires_grad_(differentiable) for x in inputs)

    def results() -> list[Tensor]:
        with torch.no_grad():
            unrecorded = _outputs(function(*inputs))
        if not differentiable:
            return list(unrecorded)
        outputs = _outputs(function(*inputs))
        gradients = torch.autograd.grad(outputs, inputs, cotangents)
        return [*unrecorded, *(output.detach() for output in outputs), *gradients]

    def forward() -> dict[str, float]:
        with torch.no_grad():
            clock = Clock()
            kept = function(*inputs)
            clock.mark()
        del kept
        return {"forward": clock.seconds()[0]}

    def training() -> dict[str, float]:
        clock = Clock()
        outputs = _outputs(function(*inputs))
        clock.mark()
        gradients = torch.autograd.grad(outputs, inputs, cotangents)
        clock.mark()
        del gradients
        recorded, backward = clock.seconds()
        return {"recorded": recorded, "backward": backward, "both": recorded + backward}

    return Side(results, (forward, training) if differentiable else (forward,))


def eager(case: Case, size: Size, inputs: Tensors, cotangents: Tensors) -> Side:
    """The plain PyTorch peer."""
    return torch_side(case.peer(size), case.peer_inputs(*inputs), cotangents, case.differentiable)


def ours(case: Case, size: Size, inputs: Tensors, cotangents: Tensors) -> Side:
    """The compiled operator."""
    return torch_side(case.ours(size), inputs, cotangents, case.differentiable)


def measure(
    case: Case,
    size: Size,
    dtypes: Sequence[torch.dtype],
    seconds: float,
    peers: Mapping[str, MakeSide] | None = None,
    compared: Size | None = None,
) -> list[Row]:
    """Compare all sides at a tiny shape and at this one, then time them in turn for about `seconds`.

    Where plain PyTorch has no room for this shape, `compared` is one to compare at instead. Parameters stay
    float32, so a case without activations is measured in float32 alone. Raises DisagreementError.
    """
    makers = {"ours": ours, **({"eager": eager} if peers is None else peers)}
    samples: dict[Key, Sample] = {}
    for dtype in dtypes:
        if dtype == torch.float32 or any(case.activations):
            compare(case, replace(TINY, heads=size.heads), dtype, {"ours": ours}, torch.float64)
            sides = compare(case, compared or size, dtype, makers, torch.float32)
            if compared is not None:
                sides = _sides(makers, case, size, *_drawn(case, size, dtype))
            timed = {name: side.samples for name, side in sides.items()}
            timed["floor"] = _floor(case, size, dtype)
            for name, parts in timed.items():
                samples.update({(_name(dtype), name, index): part for index, part in enumerate(parts)})
    return _rows(case, interleave(samples, seconds))


def compare(
    case: Case, size: Size, dtype: torch.dtype, makers: Mapping[str, MakeSide], exact_dtype: torch.dtype
) -> dict[str, Side]:
    """The sides that exist, each found to lose at most twice what plain PyTorch loses and one rounding.

    What is exact is the plain PyTorch peer in `exact_dtype` on the same rounded inputs, gradients included.
    """
    inputs, cotangents = _drawn(case, size, dtype)

    def plain(as_dtype: torch.dtype | None) -> Sequence[Tensor | None]:
        cast = [tuple(x if as_dtype is None else x.to(as_dtype) for x in t) for t in (inputs, cotangents)]
        return eager(case, size, *cast).results()

    exact = plain(exact_dtype)
    naive = exact if dtype == exact_dtype else plain(None)
    rounding = _ROUNDING[dtype, exact_dtype]
    errors = [_error(n, e) for n, e in zip(naive, exact, strict=True)]
    allowed = [_NAIVE_MULTIPLE * (error + rounding) for error in errors]
    sides = _sides(makers, case, size, inputs, cotangents)
    for name, side in sides.items():
        found = naive if name == "eager" else side.results()
        for index, (result, e, limit) in enumerate(zip(found, exact, allowed, strict=True)):
            error = _error(result, e)
            if not error <= limit:
                raise DisagreementError(
                    f"{case.name} in {_name(dtype)}: result {index} of {name} is {error:.1e} from plain "
                    f"PyTorch in {_name(exact_dtype)}, more than {limit:.0e}",
                    name,
                )
    return sides


def _drawn(case: Case, size: Size, dtype: torch.dtype) -> tuple[Tensors, Tensors]:
    """Inputs and cotangents, always the same."""
    torch.manual_seed(_SEED)
    inputs = tuple(x.detach() for x in case.draw(size, dtype))
    with torch.no_grad():
        return inputs, tuple(torch.randn_like(y) for y in _outputs(case.ours(size)(*inputs)))


def _sides(
    makers: Mapping[str, MakeSide], case: Case, size: Size, inputs: Tensors, cotangents: Tensors
) -> dict[str, Side]:
    made = {name: maker(case, size, inputs, cotangents) for name, maker in makers.items()}
    return {name: side for name, side in made.items() if side is not None}


def _floor(case: Case, size: Size, dtype: torch.dtype) -> tuple[Sample, ...]:
    amounts = {"forward": case.floor.forward(size), "backward": case.floor.backward(size)}
    if case.floor.unit == "copy":
        return ceilings.copy(dtype, **amounts)
    return (ceilings.gemm(torch.float32 if case.floor.unit == "gemm32" else dtype, **amounts),)


def _rows(case: Case, taken: Mapping[Key, Mapping[str, list[float]]]) -> list[Row]:
    times: dict[str, dict[str, dict[str, list[float]]]] = {}
    for (dtype, side, _), parts in taken.items():
        times.setdefault(dtype, {}).setdefault(side, {}).update(parts)
    rows: list[Row] = []
    for dtype, sides in times.items():
        floor = {direction: median(values) for direction, values in sides.pop("floor").items()}
        floor["both"] = floor["forward"] + floor["backward"]
        for direction in DIRECTIONS if case.differentiable else DIRECTIONS[:1]:
            seconds = {side: median(parts[direction]) for side, parts in sides.items() if direction in parts}
            runs = {side: len(parts[direction]) for side, parts in sides.items() if direction in parts}
            mine = seconds.pop("ours")
            rows.append(Row(case.name, dtype, direction, mine, floor[direction], seconds, runs))
    return rows


def _outputs(result: Tensor | Tensors) -> Tensors:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _error(result: Tensor | None, exact: Tensor | None) -> float:
    """|result - exact| / |exact|, norms over the whole tensor; 0 where there is nothing to compare."""
    if result is None or exact is None:
        return 0.0
    difference = torch.linalg.vector_norm(result.double() - exact.double())
    return float(difference / torch.linalg.vector_norm(exact.double()))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
