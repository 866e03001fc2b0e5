"""Malformed calls, generated: every way to spoil an argument, for every argument of every operator.

Run as a program it makes all of these calls in one process, which must survive them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import torch
from calls import ACTIVATIONS, OPERATORS, SEQUENCE_OPERATORS, STATES, Call, Tokens, cotangents, example
from frontends import REFERENCE, nested_cotangents, to_numpy
from megalodon_core import ops
from torch import Tensor

SIZES = {"chunk_attention": {"heads": 3, "capacity": 4}, "normalized_attention": {"heads": 3, "capacity": 4}}
OPTIONAL = {
    "cema": ("omega", "initial_state"),
    "ema": ("omega", "initial_state"),
    "rms_norm": ("weight",),
    "two_hop_residual": ("alpha",),
}
MAY_BE_NONE = ("cu_seqlens", "padding_mask", "dstate", "dmean", "dvar", "dk", "dv", "dq")
CONVERT = {"torch": lambda x: x, "numpy": to_numpy}
Names = tuple[str, ...]


@dataclass(frozen=True)
class Malformed:
    """A call that must raise ValueError or TypeError with "op: argument: expected ..., got ..."."""

    op: str
    label: str
    arguments: Names  # those that the message may name
    run: Callable[[], Any] = field(repr=False)

    def complaint(self) -> str | None:
        """What is wrong with how the call fails; None where it fails as it must."""
        # Any exception is caught: a traceback through the call would print arrays that cannot be read.
        try:
            self.run()
        except Exception as error:  # noqa: BLE001
            kind, message = type(error), str(error)
        else:
            return f"{self.label}: no exception"
        names = "|".join(re.escape(alias) for name in self.arguments for alias in aliases(self.op, name))
        good = re.match(rf"{self.op}: ({names}): expected .+, got .+", message, re.DOTALL)
        if good and issubclass(kind, (TypeError, ValueError)) and len(message) < 300:
            return None
        return f"{self.label}: {kind.__name__}: {message[:1000]}"


def aliases(op: str, name: str) -> Names:
    """What a message may call an argument: a part of the state also by the argument it is passed in."""
    if name in STATES.get(op, {}):
        return name, "initial_state", f"initial_state.{STATES[op][name]}"
    if name.startswith("d") and name[1:] in STATES.get(op, {}).values():
        return name, f"dfinal_{name[1:]}"
    return (name,)


@dataclass(frozen=True)
class Base:
    """A good call, and how it is spoilt: one array is replaced, forward or backward is called."""

    call: Call
    frontend: str
    drawn: dict[str, Tensor]  # cotangents dy, dstate, ...; none for a call of forward

    @property
    def arrays(self) -> dict[str, Tensor]:
        return {name: x for name, x in self.values.items() if isinstance(x, Tensor)}

    @property
    def values(self) -> dict[str, Any]:
        """Every argument of the call by name."""
        return self.call.inputs | self.call.options | self.drawn

    @property
    def prefix(self) -> str:
        return f"{self.call.op}-{'backward' if self.drawn else 'forward'}-{self.frontend}"

    def run(self, **changes: Any) -> Any:
        """The call with these arguments in place of its own, as they are."""
        op, convert = getattr(ops, self.call.op), CONVERT[self.frontend]
        given = {name: convert(x) if isinstance(x, Tensor) else x for name, x in self.values.items()}
        given |= changes
        drawn = {name.removeprefix("d"): given.pop(name) for name in self.drawn}
        call = Call(self.call.op, {}, given)
        if not drawn:
            return op(**call.arguments())
        return op.backward(nested_cotangents(call, drawn), **call.arguments())

    def spoilt(self, label: str, arguments: Names, **changes: Any) -> Malformed:
        return Malformed(self.call.op, f"{self.prefix}-{label}", arguments, lambda: self.run(**changes))


def bases(op: str, frontend: str) -> Iterator[Base]:
    """Padded and packed where there are sequences, forward and backward."""
    variants = [{}]
    if op in SEQUENCE_OPERATORS:
        variants = [{"tokens": Tokens(length=7, padded=True)}, {"tokens": Tokens(documents=(3, 4))}]
    for variant in variants:
        call = example(op, torch.float32, **SIZES.get(op, {}), **variant)
        drawn = {name: x.float() for name, x in cotangents(REFERENCE.forward(call)).items()}
        yield Base(call, frontend, {})
        yield Base(call, frontend, {f"d{name}": x for name, x in drawn.items()})


def reshaped(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The array with one axis too long, too short, empty, missing or too many, or two of them swapped."""
    for axis, size in enumerate(x.shape):
        yield f"axis{axis}_longer", torch.cat((x, x.narrow(axis, 0, 1)), axis)
        if size > 1:
            yield f"axis{axis}_shorter", x.narrow(axis, 0, size - 1)
        yield f"axis{axis}_empty", x.narrow(axis, 0, 0)
    for axis in range(x.ndim - 1):
        if x.shape[axis] != x.shape[axis + 1]:
            yield f"axes{axis}{axis + 1}_swapped", x.transpose(axis, axis + 1)
    yield "rank_too_high", x[None]
    yield "rank_too_low", x[0]
    yield "rank_0", x.reshape(-1)[0]
    yield "rank_9", x.reshape((1,) * (9 - x.ndim) + x.shape)


def freed(x: Tensor) -> Tensor:
    return with_memory(x.clone(), 0)


def freed_view(x: Tensor) -> Tensor:
    """Its address is an offset from null."""
    return with_memory(torch.stack((x, x))[1], 0)


def shrunk(x: Tensor) -> Tensor:
    """Its memory ends inside the array."""
    return with_memory(x.clone(), x.numel() * x.element_size() - 1)


def with_memory(x: Tensor, size: int) -> Tensor:
    x.untyped_storage().resize_(size)
    return x


def other_order(x: Tensor) -> np.ndarray:
    return to_numpy(x).astype(to_numpy(x).dtype.newbyteorder())


def records(x: Tensor) -> np.ndarray:
    return to_numpy(x).astype([("value", to_numpy(x).dtype)])


ANYWHERE: dict[str, Callable[[Tensor], Any]] = {
    "list": lambda x: x.tolist(),
    "string": lambda x: "array",
    "number": lambda x: 1.0,
    "object": lambda x: object(),
}
FOREIGN: dict[str, dict[str, Callable[[Tensor], Any]]] = {
    "numpy": ANYWHERE
    | {
        "torch_tensor": lambda x: x,
        "scalar": lambda x: to_numpy(x).reshape(-1)[0],
        "object_dtype": lambda x: to_numpy(x).astype(object),
        "string_dtype": lambda x: to_numpy(x).astype(str),
        "record_dtype": records,
        "date_dtype": lambda x: np.zeros(x.shape, "datetime64[s]"),
        "longdouble": lambda x: to_numpy(x).astype(np.longdouble),
        "float8": lambda x: to_numpy(x).astype(ml_dtypes.float8_e4m3fn),
    },
    "torch": ANYWHERE
    | {
        "numpy_array": to_numpy,
        "meta": lambda x: x.to("meta"),
        "sparse": torch.Tensor.to_sparse,
        "freed": freed,
        "freed_view": freed_view,
        "shrunk": shrunk,
        "float8": lambda x: x.to(torch.float8_e4m3fn),
    },
}
DTYPES = [torch.int32, torch.int64, torch.uint8, torch.bool, torch.complex64]
FLOATS = [torch.float64, torch.bfloat16, torch.float16]
LEGAL_DTYPES = {"cu_seqlens": (torch.int32, torch.int64), "padding_mask": (torch.bool,)}
INTEGERS = ("initial_count", "initial_length")
FRAMEWORK_LABELS = ("meta", "torch_tensor", "numpy_array")


def spoilt_arrays(base: Base) -> Iterator[Malformed]:
    """Every array of the call, spoilt in every way that this argument does not allow."""
    first, *_ = base.arrays
    everything, convert = tuple(base.values), CONVERT[base.frontend]
    for name, x in base.arrays.items():
        for label, shape in reshaped(x):
            if not is_legal_shape(base, name, shape):
                yield base.spoilt(f"{name}-{label}", everything, **{name: convert(shape)})
        for dtype in (*DTYPES, *FLOATS):
            if not is_legal_dtype(base, name, dtype):
                # Another float type of the first array makes the others wrong.
                named = everything if name == first and dtype in FLOATS else (name,)
                label = str(dtype).removeprefix("torch.")
                yield base.spoilt(f"{name}-{label}", named, **{name: convert(x.to(dtype))})
        for label, make in FOREIGN[base.frontend].items():
            # The others are expected to be like the first.
            named = everything if name == first and label in FRAMEWORK_LABELS else (name,)
            yield base.spoilt(f"{name}-{label}", named, **{name: make(x)})
        if base.frontend == "numpy" and x.element_size() > 1:
            yield base.spoilt(f"{name}-byte_order", (name,), **{name: other_order(x)})
        if name not in OPTIONAL.get(base.call.op, ()) and name not in MAY_BE_NONE:
            yield base.spoilt(f"{name}-none", (name,), **{name: None})


def is_legal_shape(base: Base, name: str, x: Tensor) -> bool:
    """A norm takes any number of rows, as long as no other array says how many."""
    alone = base.call.op in ("rms_norm", "layer_norm") and name == "x" and not base.drawn
    return alone and 1 <= x.ndim <= 8 and x.shape[-1:] == base.arrays["x"].shape[-1:]


def is_legal_dtype(base: Base, name: str, dtype: torch.dtype) -> bool:
    if name in LEGAL_DTYPES:
        return dtype in LEGAL_DTYPES[name]
    if name in INTEGERS:
        return dtype == torch.int64
    alone = ACTIVATIONS[base.call.op] == (name,) and not base.drawn
    return alone and dtype in (torch.bfloat16, torch.float16)


HUGE = 10**400
NOT_A_NUMBER = ["1", None, True, 1j, [1], object(), np.ones(2), torch.ones(2), np.complex64(1)]
NOT_AN_INTEGER = [*NOT_A_NUMBER, 1.0, math.nan, 2**63, -(2**63) - 1, HUGE]
NOT_POSITIVE = [*NOT_A_NUMBER, 0, 0.0, -1e-5, math.nan, math.inf, -math.inf, HUGE]
ATTRIBUTES = {
    "eps": NOT_POSITIVE,
    "rope_base": NOT_POSITIVE,
    "scale": [*NOT_A_NUMBER, math.nan, math.inf, -math.inf, HUGE],
    "dropout_p": [*NOT_A_NUMBER, -0.1, 1, 1.5, math.nan, math.inf, HUGE],
    "chunk_size": [*NOT_AN_INTEGER, 0, -1],
    "num_groups": [*NOT_AN_INTEGER, 0, -1, 4, 12],
    "seed": [*NOT_AN_INTEGER, -1],
}


def spoilt_attributes(base: Base) -> Iterator[Malformed]:
    given = base.call.options
    dropout = {"dropout_p": 0.5, "seed": 1} if "dropout_p" in given else {}
    for name, values in ATTRIBUTES.items():
        for i, value in enumerate(values if name in given else ()):
            yield base.spoilt(f"{name}-{i}", (name,), **dropout | {name: value})


OFFSETS = {
    "starts_late": [1, 3, 7],
    "starts_early": [-1, 3, 7],
    "unsorted": [0, 5, 3, 7],
    "negative": [0, -3, 7],
    "ends_early": [0, 3, 6],
    "ends_late": [0, 3, 8],
    "overflowing": [0, 2**62, 7],
    "single": [0],
}


def spoilt_sequences(base: Base) -> Iterator[Malformed]:
    """Offsets, counts and lengths of the right shape and type with impossible values."""
    convert, options = CONVERT[base.frontend], base.call.options
    if options.get("cu_seqlens") is not None:
        for label, offsets in OFFSETS.items():
            changes = {"cu_seqlens": convert(torch.tensor(offsets))}
            yield base.spoilt(f"cu_seqlens-{label}", ("cu_seqlens",), **changes)
        mask = {"padding_mask": convert(torch.zeros(1, 7, dtype=torch.bool))}
        yield base.spoilt("cu_seqlens-with_mask", ("cu_seqlens", "padding_mask"), **mask)
    if options.get("padding_mask") is not None:
        changes = {"padding_mask": None, "cu_seqlens": convert(torch.tensor([0, 3, 7]))}
        yield base.spoilt("cu_seqlens-batch", ("cu_seqlens",), **changes)
    for name in INTEGERS:
        if name in options:
            for value in (-1, -(2**63), *((5, 2**63 - 1) if name == "initial_length" else ())):
                changed = options[name].clone()
                changed[-1] = value
                yield base.spoilt(f"{name}-{value}", (name,), **{name: convert(changed)})


def spoilt_structure(base: Base) -> Iterator[Malformed]:
    """Tuples of the wrong arity, for the state and for the cotangents."""
    op, convert = getattr(ops, base.call.op), CONVERT[base.frontend]
    arguments = base.call.arguments(convert)
    direction = op.backward if base.drawn else op
    drawn = {name.removeprefix("d"): convert(x) for name, x in base.drawn.items()}
    before = (nested_cotangents(base.call, drawn),) if drawn else ()

    def spoilt(label: str, name: str, *cotangents: Any, **changes: Any) -> Malformed:
        label = f"{base.prefix}-{label}"
        return Malformed(base.call.op, label, (name,), lambda: direction(*cotangents, **arguments | changes))

    if "initial_state" in arguments:
        state = arguments["initial_state"]
        parts = state if isinstance(state, tuple) else (state,)
        wrong = {"empty": (), "longer": (*parts, parts[0]), "wrapped": (state,), "text": "state", "set": {1}}
        if len(parts) > 1:
            wrong |= {"shorter": parts[:-1], "bare": parts[0]}
        for label, value in wrong.items():
            yield spoilt(f"initial_state-{label}", "initial_state", *before, initial_state=value)
    if not drawn:
        return
    dy, *dstate = drawn.values()
    if len(drawn) == 1:
        wrong = {"dy": [None, (dy,), (dy, None), [dy], "dy", 1.0]}
    else:
        wrong = {"cotangents": [None, dy, (dy,), (dy, None, None), (), "dy", 1.0]}
    if len(drawn) > 2:
        wrong["dstate"] = [(dy, x) for x in (dstate[0], (), (dstate[0],), (*dstate, dy), "dstate", 1.0)]
    for name, values in wrong.items():
        for i, value in enumerate(values):
            yield spoilt(f"{name}-{i}", name, value)


def spoilt_sizes(base: Base) -> Iterator[Malformed]:
    """Sizes that agree with each other but not with the operator."""
    op = base.call.op
    sizes = {
        "cema": ({"ndim": 65}, "p"),
        "ema": ({"ndim": 65}, "p"),
        "cema_coefficients": ({"ndim": 65}, "alpha"),
        "normalized_attention": ({"key_dim": 5}, "z"),
    }
    if op in sizes and not base.drawn:
        size, name = sizes[op]
        call = example(op, torch.float32, **size)
        yield Base(call, base.frontend, {}).spoilt(f"{name}-{size}", (name,))


def malformed_calls(op: str, frontend: str) -> Iterator[Malformed]:
    for base in bases(op, frontend):
        for spoil in (spoilt_arrays, spoilt_attributes, spoilt_sequences, spoilt_structure, spoilt_sizes):
            yield from spoil(base)


if __name__ == "__main__":
    complaints = [call.complaint() for pair in product(OPERATORS, CONVERT) for call in malformed_calls(*pair)]
    wrong = len(complaints) - complaints.count(None)
    print(f"{len(complaints)} malformed calls, {wrong} of them not refused as they must be")
