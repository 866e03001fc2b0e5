"""torch tensors: `torch.library` operators with autograd and fake kernels, made from each operator's `Spec`.

For an operator `op` there are `torch.ops.megalodon_core.op` and `torch.ops.megalodon_core.op_backward`.
Autograd saves the operator's inputs, and what its `Spec` keeps: further outputs of the former, which has them
whether or not a gradient is wanted. Backward of backward raises RuntimeError.

Forward-mode differentiation raises NotImplementedError.

An eager call of plain tensors that nothing observes (no compiler, tracer, transform, mode, profiler,
autocast, forward-mode differentiation) goes straight to the core, inside an autograd function where a
gradient is wanted. The dispatcher would cost more than a small kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd import forward_ad

from megalodon_core import _core, cuda
from megalodon_core.ops import SPECS
from megalodon_core.spec import Inferred, Spec

Array = torch.Tensor

_CODES: dict[torch.dtype, int] = {getattr(torch, name): code for name, code in _core.dtypes.items()}
_DTYPES: dict[int, torch.dtype] = {code: dtype for dtype, code in _CODES.items()}
_DEVICES = {"cpu": 1, "cuda": 2}  # DLPack's numbers
_CPU = torch.device("cpu")
_SCHEMA_TYPES = {float: "float", int: "int"}

# Of a tensor that has outlived the transform which wrapped it, the tensor itself.
_unwrap_if_dead: Callable[[torch.Tensor], torch.Tensor] = getattr(
    getattr(torch._C, "_functorch", None), "unwrap_if_dead", lambda tensor: tensor
)

_library = torch.library.Library("megalodon_core", "DEF")


# ---- tensors for the core ----


def _describe(device: str, op: str, name: str, tensor: torch.Tensor, strided: bool) -> tuple[Any, ...]:
    """The tensor as it is where the core can walk its strides, else as a contiguous copy."""
    _check_placement(op, name, tensor)
    if tensor.device.type != device:
        raise ValueError(f"{op}: {name}: expected a tensor on {device}, got {tensor.device}")
    if tensor.ndim > _core.max_rank:
        raise ValueError(f"{op}: {name}: expected at most {_core.max_rank} axes, got {tensor.ndim}")
    if tensor.dtype not in _CODES:
        raise TypeError(f"{op}: {name}: expected one of {', '.join(_core.dtypes)}, got {tensor.dtype}")
    tensor = _unwrap_if_dead(tensor)
    contiguous = tensor.is_contiguous()
    elements = tensor.numel()
    if not contiguous and elements > 0:
        axes = zip(tensor.shape, tensor.stride(), strict=True)
        elements = 1 + sum((size - 1) * stride for size, stride in axes)
    step = tensor.element_size()
    if elements > 0 and (tensor.storage_offset() + elements) * step > tensor.untyped_storage().nbytes():
        raise ValueError(f"{op}: {name}: expected a tensor with memory, got a freed one")
    rows = strided and tensor.ndim > 0 and tensor.stride(-1) == 1
    if tensor.is_neg() or not (contiguous or rows) or tensor.data_ptr() % step != 0:
        tensor = tensor.resolve_neg().clone(memory_format=torch.contiguous_format)
    return _description(tensor)


def _description(tensor: torch.Tensor) -> tuple[Any, ...]:
    device = tensor.device
    place = _DEVICES[device.type], device.index or 0
    return (tensor, tensor.data_ptr(), _CODES[tensor.dtype], *place, True, tensor.shape, tensor.stride())


def empty(shape: tuple[int, ...], code: int, device: torch.device = _CPU) -> torch.Tensor:
    """An uninitialized tensor for an output of the core; on a GPU, the current one."""
    return torch.empty(shape, dtype=_DTYPES[code], device=device)


# The same of the shape, type and device of another tensor.
empty_like = partial(torch.empty_like, memory_format=torch.contiguous_format)


def make_frontend(direct: bool, device: str = "cpu") -> _core.Frontend:
    """torch for the core: `direct` where torch offers DLPack's exchange table, which older releases lack."""
    place = torch.device(device)

    def allocate(shape: tuple[int, ...], code: int) -> Any:
        return empty(shape, code, place)

    def describe_new(shape: tuple[int, ...], code: int) -> tuple[Any, ...]:
        return _description(empty(shape, code, place))

    describe = partial(_describe, device)
    if not direct:
        return _core.Frontend(Array, describe, describe_new)
    return _core.Frontend(Array, describe, allocate, (torch.Tensor, torch.nn.Parameter), empty_like)


_DIRECT = hasattr(torch.Tensor, "__dlpack_c_exchange_api__")
_frontend = make_frontend(_DIRECT)
_cuda_frontend = make_frontend(_DIRECT, "cuda")


def _forward(spec: Spec, *arguments: Any, **options: bool) -> tuple[torch.Tensor, ...]:
    if arguments[0].is_cpu:
        return spec.kernels.forward(_frontend, torch.get_num_threads(), *arguments, **options)
    return _on_gpu(spec.cuda_kernels.forward, *arguments, **options)


def _backward(spec: Spec, *arguments: Any) -> tuple[torch.Tensor, ...]:
    if arguments[0].is_cpu:
        return spec.kernels.backward(_frontend, torch.get_num_threads(), *arguments)
    return _on_gpu(spec.cuda_kernels.backward, *arguments)


def _on_gpu(
    kernel: Callable[..., tuple[torch.Tensor, ...]], *arguments: Any, **options: bool
) -> tuple[torch.Tensor, ...]:
    """Queues on the current stream of the GPU of the first tensor."""
    with torch.cuda.device(arguments[0].device):
        return kernel(_cuda_frontend, torch.cuda.current_stream().cuda_stream, *arguments, **options)


# ---- autograd ----


def _differentiate(
    spec: Spec,
    backward: Callable[..., Sequence[torch.Tensor]],
    grads: Sequence[Any],
    saved: Sequence[Any],
    attributes: Sequence[Any],
) -> tuple[Any, ...]:
    """Gradients of the inputs from those of all outputs; `backward` takes the arguments of `op_backward`.

    `saved` are the inputs and what forward kept.
    """
    inputs = saved[: len(spec.inputs)]
    given = [grads[i] for i in spec.differentiable_outputs]
    if given[0] is None:
        given[0] = torch.zeros_like(inputs[spec.y_like], memory_format=torch.contiguous_format)
    _refuse_tangents(spec, (*given, *inputs))
    own = backward(*given, *saved, *attributes)
    return spec.spread_gradients(given[0], inputs, own)


class _Direct(torch.autograd.Function):
    """An operator without the dispatcher."""

    @staticmethod
    def forward(ctx: Any, spec: Spec, attributes: Sequence[Any], *inputs: Any) -> Any:
        ctx.set_materialize_grads(False)
        ctx.call = spec, attributes
        outputs = _forward(spec, *inputs, *attributes, **_keeping(spec))
        ctx.save_for_backward(*inputs, *outputs[len(spec.outputs) :])
        return outputs[: len(spec.outputs)]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (spec, attributes), saved = ctx.call, ctx.saved_tensors
        # With create_graph=True the dispatcher's operator records that it has no backward of its own.
        if _goes_straight((*saved, *grads)) and not torch.is_grad_enabled():
            backward = partial(_backward, spec)
        else:
            backward = getattr(torch.ops.megalodon_core, f"{spec.name}_backward")
        return (None, None, *_differentiate(spec, backward, grads, saved, attributes))


# `_Direct.apply` without what it does for transforms, of which there are none where it is called.
_record: Callable[..., tuple[Any, ...]] = super(torch.autograd.Function, _Direct).apply


def _keeping(spec: Spec) -> dict[str, bool]:
    """What makes forward keep for backward what it can."""
    return {"keep": True} if spec.kept else {}


def _always() -> bool:
    return True


# Whether transforms, tracers, profilers or autocast are active; True from a release of torch that no longer
# tells, and as if there were always a mode.
_OBSERVERS = tuple(
    getattr(module, name, _always)
    for module, name in (
        (torch._C, "_are_functorch_transforms_active"),
        (torch._C, "_get_tracing_state"),
        (torch.autograd, "_profiler_enabled"),
        (torch._C, "_is_any_autocast_enabled"),
    )
)
_gate = _core.Gate(
    (torch.Tensor, torch.nn.Parameter),
    _OBSERVERS,
    getattr(torch._C, "_len_torch_dispatch_stack", lambda: 2),
    forward_ad,
    torch.is_grad_enabled,
    cuda.kernels() is not None,
)


def _goes_straight(tensors: tuple[Any, ...]) -> bool:
    """Whether the core can be called on the tensors without the dispatcher; the first is not None."""
    return not torch.compiler.is_compiling() and _gate.lets_through(tensors)


def is_observed() -> bool:
    """Whether something must see calls as operators of torch's dispatcher."""
    return torch.compiler.is_compiling() or _gate.is_observed()


def _refuse_tangents(spec: Spec, tensors: Sequence[Any]) -> None:
    """Raises NotImplementedError where a derivative would be lost: operators have no forward-mode formula."""
    if torch.compiler.is_compiling() or getattr(forward_ad, "_current_level", 0) < 0:
        return
    for tensor in tensors:
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                f"{spec.name}: forward-mode differentiation is not implemented; use torch.autograd.grad or "
                f"torch.func.vjp"
            )


# ---- torch.library ----


def _materialize(spec: Spec, inferred: Inferred, inputs: Sequence[Any]) -> torch.Tensor:
    shape, kind = inferred
    activation: torch.Tensor = inputs[spec.y_like]
    if kind == "activation":
        return activation.new_empty(shape)
    if kind in ("int64", "float64"):
        return activation.new_empty(shape, dtype=getattr(torch, kind))
    wide = torch.float64 if activation.dtype == torch.float64 else torch.float32
    return activation.new_empty(shape, dtype=wide)


def register(spec: Spec) -> None:
    """Define the torch operators of a spec."""
    count, split = len(spec.inputs), len(spec.cotangents)
    inputs = [f"Tensor{'?' if declared.optional else ''} {declared.name}" for declared in spec.inputs]
    kept = [f"Tensor? {name}" for name in spec.kept]
    attributes = [f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in spec.attributes]
    cotangents = [f"Tensor{'?' if i else ''} d{name}" for i, name in enumerate(spec.cotangents)]
    results = ", ".join("Tensor" for _ in (*spec.outputs, *spec.kept))
    _library.define(f"{spec.name}({', '.join(inputs + attributes)}) -> ({results})")
    _library.define(f"{spec.name}_backward({', '.join(cotangents + inputs + kept + attributes)}) -> Tensor[]")

    def implement(device: str, forward: Callable[..., Any], backward: Callable[..., Any]) -> None:
        def unpacked(*args: Any) -> Any:
            outputs = forward(spec, *args, **_keeping(spec))
            return outputs if len(outputs) > 1 else outputs[0]

        _library.impl(spec.name, unpacked, device)
        _library.impl(f"{spec.name}_backward", lambda *args: list(backward(spec, *args)), device)

    def forward_fake(*args: Any) -> Any:
        inputs = args[:count]
        made = [_materialize(spec, one, inputs) for one in spec.infer(inputs, args[count:])]
        return tuple(made) if len(made) > 1 else made[0]

    def backward_fake(*args: Any) -> list[torch.Tensor]:
        inputs = args[split : split + count]
        return [inputs[i].new_empty(inputs[i].shape) for i in spec.own_gradients(inputs)]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        kept = output[len(spec.outputs) :] if spec.kept else ()
        ctx.mark_non_differentiable(*kept)
        ctx.save_for_backward(*inputs[:count], *kept)
        ctx.attributes = inputs[count:]

    def differentiate(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        found = _differentiate(spec, backward_op, grads, ctx.saved_tensors, ctx.attributes)
        return (*found, *(None for _ in spec.attributes))

    def refuse(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        raise RuntimeError(
            f"{spec.name}: backward of backward is not implemented; call backward or torch.autograd.grad "
            f"without create_graph=True"
        )

    def remember_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)

    qualified = f"megalodon_core::{spec.name}"
    implement("CPU", _forward, _backward)
    implement("CUDA", _forward, _backward)
    torch.library.register_fake(qualified, forward_fake, lib=_library)
    torch.library.register_fake(f"{qualified}_backward", backward_fake, lib=_library)
    backward_op = getattr(torch.ops.megalodon_core, f"{spec.name}_backward").default
    torch.library.register_autograd(qualified, differentiate, setup_context=setup_context, lib=_library)
    torch.library.register_autograd(
        f"{qualified}_backward", refuse, setup_context=remember_nothing, lib=_library
    )


# ---- what a frontend offers ----


def forward(
    spec: Spec, inputs: tuple[Any, ...], attributes: Sequence[Any], donate_state: bool
) -> tuple[Any, ...]:
    """Outputs of the operator, differentiable by autograd. No use is made of a donation beside a gradient."""
    if _goes_straight(inputs):
        if _gate.wants_gradients(inputs):
            return _record(spec, attributes, *inputs)
        donation = (True,) if donate_state else ()
        return _forward(spec, *inputs, *attributes, *donation)
    _check(spec, inputs)
    _refuse_tangents(spec, inputs)
    found = getattr(torch.ops.megalodon_core, spec.name)(*_promoted(spec, inputs), *attributes)
    outputs = (found,) if isinstance(found, torch.Tensor) else tuple(found)
    return outputs[: len(spec.outputs)]


def backward(
    spec: Spec, cotangents: Sequence[Any], inputs: Sequence[Any], attributes: Sequence[Any]
) -> tuple[Any, ...]:
    """One gradient per input, None where there is none."""
    _check(spec, inputs, cotangents)
    own = getattr(torch.ops.megalodon_core, f"{spec.name}_backward")(
        *cotangents, *inputs, *spec.nothing_kept, *attributes
    )
    return spec.spread_gradients(cotangents[0], inputs, own)


def few_row_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor | None:
    """`torch.nn.functional.linear` of a few rows, as in decoding: weights are read once, at memory speed.

    None where torch must do it: for more than `_core.few_rows` rows, other tensors, or where a gradient is
    wanted.
    """
    tensors = (x, weight, bias)
    few = x.is_cpu and 0 < x.numel() <= _core.few_rows * weight.shape[-1] and _goes_straight(tensors)
    if not few or _gate.wants_gradients(tensors):
        return None
    y: torch.Tensor
    (y,) = _core.few_row_linear(_frontend, torch.get_num_threads(), x, weight, bias)
    return y


def silu(x: torch.Tensor) -> torch.Tensor:
    """`torch.nn.functional.silu` by the core, on a CPU and without a gradient: for a `Recording`."""
    y: torch.Tensor
    (y,) = _core.silu(_frontend, torch.get_num_threads(), x)
    return y


def add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """`x + y` of tensors of one shape and type by the core, for a `Recording`."""
    total: torch.Tensor
    (total,) = _core.two_hop_residual_forward(_frontend, torch.get_num_threads(), y, x, None)
    return total


def copy(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """`target.copy_(source)` of tensors of one shape and type by the core, for a `Recording`."""
    _core.copy(_frontend, torch.get_num_threads(), source, target)
    return target


def _promoted(spec: Spec, inputs: Sequence[Any]) -> Sequence[Any]:
    """Under autocast, the activations of a call in the widest of their types; else the inputs as they are.

    Parameters and states keep their type: they are float32 by contract.
    """
    activations = [t for t, declared in zip(inputs, spec.inputs, strict=True) if declared.activation]
    if len(activations) < 2 or not torch.is_autocast_enabled(activations[0].device.type):
        return inputs
    widest = activations[0].dtype
    for tensor in activations[1:]:
        widest = torch.promote_types(widest, tensor.dtype)
    return [
        t.to(widest) if declared.activation else t for t, declared in zip(inputs, spec.inputs, strict=True)
    ]


def _check(spec: Spec, inputs: Sequence[Any], cotangents: Sequence[Any] = ()) -> None:
    """Raises TypeError or ValueError for what the dispatcher would not name: None, other types and places."""
    required = [declared.name for declared in spec.inputs if not declared.optional]
    required.append(f"d{spec.cotangents[0]}")
    names = [declared.name for declared in spec.inputs] + [f"d{name}" for name in spec.cotangents]
    first, device = names[0], inputs[0].device
    for name, tensor in zip(names, (*inputs, *cotangents), strict=False):
        if tensor is None and name in required:
            raise TypeError(f"{spec.name}: {name}: expected an array, got None")
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
            raise TypeError(f"{spec.name}: {name}: expected torch.Tensor like {first}, got {kind}")
        _check_placement(spec.name, name, tensor)
        if tensor.device != device:
            raise ValueError(
                f"{spec.name}: {name}: expected a tensor on {device} like {first}, got {tensor.device}"
            )


def _check_placement(op: str, name: str, tensor: torch.Tensor) -> None:
    """Raises ValueError unless the tensor is strided and on a device that has kernels (or on meta)."""
    if tensor.device.type not in ("cpu", "meta") and (not tensor.is_cuda or cuda.kernels() is None):
        built = "cpu (this build has no CUDA kernels)" if tensor.is_cuda else "cpu or cuda"
        raise ValueError(f"{op}: {name}: expected a tensor on {built}, got {tensor.device}")
    if tensor.layout != torch.strided or tensor.is_nested:
        got = "a nested one" if tensor.is_nested else str(tensor.layout)
        raise ValueError(f"{op}: {name}: expected a strided tensor, got {got}")


for _spec in SPECS:
    register(_spec)
