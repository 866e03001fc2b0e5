"""The public face of an operator: a function with a `backward`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from numbers import Complex, Real
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar

from megalodon_core.frontends import frontend_of
from megalodon_core.spec import Spec

P = ParamSpec("P")
R = TypeVar("R")


class Call(NamedTuple):
    """The flat arguments of one call, in the order of the `Spec`."""

    inputs: tuple[Any, ...]
    attributes: tuple[Any, ...] = ()
    donate_state: bool = False


class Operator(Generic[P, R]):
    """A public operator. Calling it runs forward; `backward` gives explicit gradients.

    Made from a function that has the public signature and docstring and returns the flat `Call`.
    """

    def __init__(
        self,
        spec: Spec,
        arguments: Callable[P, Call],
        pack: Callable[[tuple[Any, ...]], R],
        gradients: Callable[..., Any],
    ) -> None:
        functools.update_wrapper(self, arguments)
        self.spec = spec
        self._kinds = tuple(kind for _, kind in spec.attributes)
        self._arguments = arguments
        self._pack = pack
        self._gradients = gradients

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        call = self._arguments(*args, **kwargs)
        frontend = frontend_of(self.spec, call.inputs[0])
        outputs = frontend.forward(self.spec, call.inputs, self._checked(call), call.donate_state)
        return self._pack(outputs)

    def backward(self, cotangents: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Gradients of a loss, given its gradients in the outputs.

        `cotangents` is `dy` for an operator with one output, `(dy, dp)`-like for one with several, and
        `(dy, dstate)` for one with a state, where `dstate` is None or mirrors the differentiable parts of the
        state: `dh` for `cema`, `(dmean, dvar)` for `timestep_norm`, `(dk, dv)` for attention. The other
        arguments are those of the call. Returns a named tuple with one gradient per differentiable input,
        None where the input was None. The gradient of a complex quantity z is dL/dRe z + i dL/dIm z.
        """
        call = self._arguments(*args, **kwargs)
        spec = self.spec
        frontend = frontend_of(spec, call.inputs[0])
        flat = _flatten(spec, cotangents)
        found = frontend.backward(spec, flat, call.inputs, self._checked(call))
        return self._gradients(
            *(g for g, i in zip(found, spec.inputs, strict=True) if i.gradient is not None)
        )

    def __repr__(self) -> str:
        return f"<operator megalodon_core.ops.{self.spec.name}>"

    def _checked(self, call: Call) -> tuple[Any, ...]:
        values = call.attributes
        if not values or (int not in self._kinds and tuple(map(type, values)) == self._kinds):
            return values
        pairs = zip(self.spec.attributes, values, strict=True)
        return tuple(number(self.spec.name, name, kind, value) for (name, kind), value in pairs)


def operator(
    spec: Spec, pack: Callable[[tuple[Any, ...]], R], gradients: Callable[..., Any]
) -> Callable[[Callable[P, Call]], Operator[P, R]]:
    """Decorator that makes an `Operator` of the function with its public signature."""

    def decorate(arguments: Callable[P, Call]) -> Operator[P, R]:
        return Operator(spec, arguments, pack, gradients)

    return decorate


def state_parts(
    op: str, state: Any, fields: Sequence[str], *, argument: str = "initial_state"
) -> tuple[Any, ...]:
    """The parts of a state of several arrays, which may be a plain tuple; of None, None for each."""
    return (None,) * len(fields) if state is None else _tuple(op, argument, state, fields)


def _tuple(op: str, argument: str, value: Any, fields: Sequence[str]) -> tuple[Any, ...]:
    if isinstance(value, tuple | list) and len(value) == len(fields):
        return tuple(value)
    got = type(value).__name__
    if isinstance(value, tuple | list):
        got += f" of {len(value)}"
    raise TypeError(f"{op}: {argument}: expected a tuple ({', '.join(fields)}), got {got}")


def number(op: str, name: str, kind: type, value: Any) -> Any:
    """An attribute as a float, or as an int of 64 bits."""
    if kind is float and type(value) is float:
        return value
    if kind is int and type(value) is int and -(2**63) <= value < 2**63:
        return value
    expected = "an integer" if kind is int else "a number"
    convertible = hasattr(value, "__index__") or (kind is float and hasattr(value, "__float__"))
    is_complex = isinstance(value, Complex) and not isinstance(value, Real)
    if isinstance(value, bool) or is_complex or not convertible:
        raise TypeError(f"{op}: {name}: expected {expected}, got {type(value).__name__}")
    try:
        converted = value.__index__() if kind is int else float(value)
        fits = kind is float or -(2**63) <= converted < 2**63
    except (TypeError, ValueError, RuntimeError):  # an array of several elements
        raise TypeError(f"{op}: {name}: expected {expected}, got {type(value).__name__}") from None
    except OverflowError:
        fits = False
    if not fits:
        raise ValueError(f"{op}: {name}: expected {expected} of 64 bits, got a larger one")
    return converted


def _flatten(spec: Spec, cotangents: Any) -> tuple[Any, ...]:
    """`dy`, `(dy, dstate)` or `(dy, (dstate parts))` as one flat tuple."""
    names = [f"d{name}" for name in spec.cotangents]
    if len(names) == 1:
        return (cotangents,)
    if len(names) == 2:
        return _tuple(spec.name, "cotangents", cotangents, names)
    dy, dstate = _tuple(spec.name, "cotangents", cotangents, (names[0], "dstate"))
    return (dy, *state_parts(spec.name, dstate, names[1:], argument="dstate"))
