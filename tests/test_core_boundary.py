"""The compiled functions refuse descriptions and allocators that break the protocol, and survive them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from calls import OPERATORS, example
from frontends import to_numpy
from megalodon_core import _core, ops

Description = tuple[Any, ...]
ARRAY, ADDRESS, DTYPE, DEVICE, WRITEABLE, SHAPE, STRIDES = 0, 1, 2, 3, 5, 6, 7


def describe(array: np.ndarray) -> Description:
    strides = tuple(stride // array.itemsize for stride in array.strides)
    code = _core.dtypes[array.dtype.name]
    return (array, array.ctypes.data, code, 1, 0, array.flags.writeable, array.shape, strides)


def allocate(shape: tuple[int, ...], dtype: int) -> Description:
    names = {code: name for name, code in _core.dtypes.items()}
    return describe(np.full(shape, -1, names[dtype]))


class Flat:
    """A call of a compiled forward: its arrays and attributes by position."""

    def __init__(self, op: str):
        flat = getattr(ops, op).__wrapped__(**example(op, torch.float32).arguments(to_numpy))
        self.spec = getattr(ops, op).spec
        self.inputs = {
            declared.name: array for declared, array in zip(self.spec.inputs, flat.inputs, strict=True)
        }
        self.attributes = [value or 0 for value in flat.attributes]

    def __call__(
        self,
        allocate: Any = allocate,
        threads: int = 1,
        **described: Callable[[Description], Any],
    ) -> tuple[np.ndarray, ...]:
        """`described` changes the descriptions of the arrays it names."""

        def describe_changed(op: str, name: str, array: np.ndarray, strided: bool) -> Any:
            assert op == self.spec.name
            return described.get(name, lambda given: given)(describe(array))

        frontend = _core.Frontend(np.ndarray, describe_changed, allocate)
        return self.spec.kernels.forward(frontend, threads, *self.inputs.values(), *self.attributes)


def replaced(item: int, change: Callable[[Any], Any]) -> Callable[[Description], Description]:
    return lambda given: (*given[:item], change(given[item]), *given[item + 1 :])


MALFORMED: dict[str, Callable[[Description], Any]] = {
    "array": lambda given: np.zeros(given[SHAPE]),
    "list": list,
    "empty": lambda given: (),
    "short": lambda given: given[:-1],
    "long": lambda given: (*given, 0),
    "address_text": replaced(ADDRESS, str),
    "address_none": replaced(ADDRESS, lambda _: None),
    "address_huge": replaced(ADDRESS, lambda _: 2**64),
    "address_null": replaced(ADDRESS, lambda _: 0),
    "address_misaligned": replaced(ADDRESS, lambda address: address + 1),
    "dtype_negative": replaced(DTYPE, lambda _: -1),
    "dtype_unknown": replaced(DTYPE, lambda _: len(_core.dtypes)),
    "dtype_huge": replaced(DTYPE, lambda _: 2**64),
    "dtype_text": replaced(DTYPE, lambda _: "float32"),
    "device_cuda": replaced(DEVICE, lambda _: 2),
    "device_text": replaced(DEVICE, lambda _: "cpu"),
    "shape_list": replaced(SHAPE, list),
    "shape_longer": replaced(SHAPE, lambda shape: (*shape, 1)),
    "shape_negative": replaced(SHAPE, lambda shape: (-1, *shape[1:])),
    "shape_overflowing": replaced(SHAPE, lambda shape: (2**62 + 1,) * len(shape)),
    "shape_huge": replaced(SHAPE, lambda shape: (2**63,) * len(shape)),
    "shape_text": replaced(SHAPE, lambda shape: ("2",) * len(shape)),
    "rank_9": lambda given: (*given[:SHAPE], (1,) * 9, (1,) * 9),
    "strides_none": replaced(STRIDES, lambda _: None),
    "strides_shorter": replaced(STRIDES, lambda strides: strides[1:]),
    "strides_last": replaced(STRIDES, lambda strides: (*strides[:-1], 2)),
}


@pytest.mark.parametrize("label", MALFORMED)
@pytest.mark.parametrize("op", OPERATORS)
def test_malformed_descriptions_are_refused(op, label):
    call = Flat(op)
    call()
    for name, given in call.inputs.items():
        if given is None:
            continue
        with pytest.raises((TypeError, ValueError), match=rf"^{op}: .*: expected .*, got ") as caught:
            call(**{name: MALFORMED[label]})
        assert name in str(caught.value) or "initial_state" in str(caught.value)


def read_only(shape: tuple[int, ...], dtype: int) -> Description:
    array, *_ = allocate(shape, dtype)
    array.flags.writeable = False
    return describe(array)


def spoilt(item: int, change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda shape, dtype: replaced(item, change)(allocate(shape, dtype))


ALLOCATORS: dict[str, Callable[..., Any]] = {
    "none": lambda shape, dtype: None,
    "array": lambda shape, dtype: allocate(shape, dtype)[ARRAY],
    "single": lambda shape, dtype: allocate(shape, dtype)[:1],
    "list": lambda shape, dtype: list(allocate(shape, dtype)),
    "longer": lambda shape, dtype: allocate((*shape[:-1], shape[-1] + 1), dtype),
    "shorter": lambda shape, dtype: allocate((*shape[:-1], shape[-1] - 1), dtype),
    "flat": lambda shape, dtype: allocate((int(np.prod(shape)),) if len(shape) > 1 else (1, *shape), dtype),
    "other_dtype": lambda shape, dtype: allocate(shape, (dtype + 1) % 2),
    "read_only": read_only,
    "null": spoilt(ADDRESS, lambda _: 0),
    "misaligned": spoilt(ADDRESS, lambda address: address + 1),
    "strided": spoilt(STRIDES, lambda strides: (*strides[:-1], 2)),
    "cuda": spoilt(DEVICE, lambda _: 2),
}


@pytest.mark.parametrize("label", ALLOCATORS)
@pytest.mark.parametrize("op", OPERATORS)
def test_malformed_outputs_are_refused(op, label):
    call = Flat(op)
    with pytest.raises((TypeError, ValueError), match=rf"^{op}: {call.spec.outputs[0]}: expected .*, got "):
        call(ALLOCATORS[label])


@pytest.mark.parametrize("op", OPERATORS)
def test_an_allocator_that_raises_is_heard(op):
    def exhausted(shape: tuple[int, ...], dtype: int) -> Any:
        raise MemoryError("no memory left")

    with pytest.raises(MemoryError, match="no memory left"):
        Flat(op)(exhausted)


@pytest.mark.parametrize("threads", [0, -1, 1025])
@pytest.mark.parametrize("op", OPERATORS)
def test_an_impossible_number_of_threads_is_refused(op, threads):
    with pytest.raises(
        ValueError, match=rf"^{op}: threads: expected an integer in \[1, 1024\], got {threads}"
    ):
        Flat(op)(threads=threads)


@pytest.mark.parametrize("change", [{0: np.zeros(1)}, {1: None}, {2: None}, {3: None}, {3: (np.ndarray,)}])
def test_what_makes_no_frontend(change):
    arguments = {0: np.ndarray, 1: lambda *given: given, 2: allocate, 3: ()}
    _core.Frontend(*arguments.values())
    with pytest.raises((TypeError, AttributeError)):
        _core.Frontend(*(arguments | change).values())


def test_a_frontend_is_needed():
    with pytest.raises(TypeError, match="silu_mul_forward"):
        _core.silu_mul_forward(None, 1, np.zeros(1), np.zeros(1))
