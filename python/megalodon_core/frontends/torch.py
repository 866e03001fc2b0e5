"""torch tensors: `torch.library` operators with autograd and fake kernels, made from each operator's `Spec`.

For an operator `op` there are `torch.ops.megalodon_core.op` and `torch.ops.megalodon_core.op_backward`. A
backward saves the operator's inputs and nothing else. Backward of backward raises RuntimeError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from megalodon_core import _core
from megalodon_core.ops import SPECS
from megalodon_core.spec import Inferred, Spec

Array = torch.Tensor

_CODES: dict[torch.dtype, int] = {getattr(torch, name): code for name, code in _core.dtypes.items()}
_DTYPES: dict[int, torch.dtype] = {code: dtype for dtype, code in _CODES.items()}
_CPU = 1  # DLPack's number
_SCHEMA_TYPES = {float: "float", int: "int"}

_library = torch.library.Library("megalodon_core", "DEF")


def _describe(spec: Spec, name: str, tensor: torch.Tensor) -> tuple[Any, ...]:
    code = _CODES.get(tensor.dtype)
    if code is None:
        raise TypeError(f"{spec.name}: {name}: expected one of {', '.join(_core.dtypes)}, got {tensor.dtype}")
    return (tensor.data_ptr(), code, _CPU, 0, True, tensor.shape, tensor.stride())


def empty(shape: tuple[int, ...], code: int) -> torch.Tensor:
    """An uninitialized tensor for an output of the core."""
    return torch.empty(shape, dtype=_DTYPES[code])


def _allocate(shape: tuple[int, ...], code: int) -> tuple[torch.Tensor, tuple[Any, ...]]:
    tensor = empty(shape, code)
    return tensor, (tensor.data_ptr(), code, _CPU, 0, True, shape, tensor.stride())


def _readable(spec: Spec, name: str, tensor: torch.Tensor | None, strided: bool) -> torch.Tensor | None:
    """The tensor itself where the core can walk its strides, else a contiguous copy.

    Raises ValueError where the storage ends before the tensor does.
    """
    if tensor is None:
        return None
    contiguous = tensor.is_contiguous()
    elements = tensor.numel()
    if not contiguous and elements > 0:
        axes = zip(tensor.shape, tensor.stride(), strict=True)
        elements = 1 + sum((size - 1) * stride for size, stride in axes)
    step = tensor.element_size()
    if elements > 0 and (tensor.storage_offset() + elements) * step > tensor.untyped_storage().nbytes():
        raise ValueError(f"{spec.name}: {name}: expected a tensor with memory, got a freed one")
    rows = strided and tensor.ndim > 0 and tensor.stride(-1) == 1
    if (contiguous or rows) and tensor.data_ptr() % step == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _call(
    spec: Spec,
    kernel: Callable[..., Any],
    names: Sequence[str],
    tensors: Sequence[Any],
    attributes: Sequence[Any],
) -> tuple[torch.Tensor, ...]:
    described = [
        None if tensor is None else _describe(spec, name, tensor)
        for name, tensor in zip(names, tensors, strict=True)
    ]
    outputs: tuple[torch.Tensor, ...] = kernel(_allocate, torch.get_num_threads(), *described, *attributes)
    return outputs


def _materialize(spec: Spec, inferred: Inferred, inputs: Sequence[Any]) -> torch.Tensor:
    shape, kind = inferred
    activation: torch.Tensor = inputs[spec.y_like]
    if kind == "activation":
        return activation.new_empty(shape)
    if kind == "int64":
        return activation.new_empty(shape, dtype=torch.int64)
    wide = torch.float64 if activation.dtype == torch.float64 else torch.float32
    return activation.new_empty(shape, dtype=wide)


def register(spec: Spec) -> None:
    """Define the torch operators of a spec."""
    count = len(spec.inputs)
    names = [declared.name for declared in spec.inputs]
    arguments = ", ".join(
        [f"Tensor{'?' if declared.optional else ''} {declared.name}" for declared in spec.inputs]
        + [f"{_SCHEMA_TYPES[kind]} {name}" for name, kind in spec.attributes]
    )
    cotangents = ", ".join(f"Tensor{'?' if i else ''} d{name}" for i, name in enumerate(spec.cotangents))
    results = ", ".join("Tensor" for _ in spec.outputs)
    _library.define(f"{spec.name}({arguments}) -> ({results})")
    _library.define(f"{spec.name}_backward({cotangents}, {arguments}) -> Tensor[]")
    forward_kernel = getattr(_core, f"{spec.name}_forward")
    backward_kernel = getattr(_core, f"{spec.name}_backward")
    cotangent_names = [f"d{name}" for name in spec.cotangents]

    def readable_inputs(inputs: Sequence[Any]) -> list[torch.Tensor | None]:
        return [
            _readable(spec, one.name, tensor, spec.strided and one.activation)
            for tensor, one in zip(inputs, spec.inputs, strict=True)
        ]

    def forward_cpu(*args: Any) -> Any:
        inputs = readable_inputs(args[:count])
        outputs = _call(spec, forward_kernel, names, inputs, args[count:])
        return outputs if len(outputs) > 1 else outputs[0]

    def backward_cpu(*args: Any) -> list[torch.Tensor]:
        split = len(cotangent_names)
        tensors = [
            _readable(spec, name, tensor, spec.strided and name == "dy")
            for name, tensor in zip(cotangent_names, args[:split], strict=True)
        ]
        tensors += readable_inputs(args[split : split + count])
        return list(_call(spec, backward_kernel, cotangent_names + names, tensors, args[split + count :]))

    def forward_fake(*args: Any) -> Any:
        inputs = args[:count]
        made = [_materialize(spec, one, inputs) for one in spec.infer(inputs, args[count:])]
        return tuple(made) if len(made) > 1 else made[0]

    def backward_fake(*args: Any) -> list[torch.Tensor]:
        split = len(cotangent_names)
        inputs = args[split : split + count]
        return [inputs[i].new_empty(inputs[i].shape) for i in spec.own_gradients(inputs)]

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:count])
        ctx.attributes = inputs[count:]

    def differentiate(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        inputs = ctx.saved_tensors
        given = [g for g, name in zip(grads, spec.outputs, strict=True) if name not in spec.integer_outputs]
        if given[0] is None:
            given[0] = torch.zeros_like(inputs[spec.y_like], memory_format=torch.contiguous_format)
        own = backward_op(*given, *inputs, *ctx.attributes)
        gradients = spec.spread_gradients(given[0], inputs, own)
        return (*gradients, *(None for _ in spec.attributes))

    def refuse(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        raise RuntimeError(
            f"{spec.name}: backward of backward is not implemented; call backward or torch.autograd.grad "
            f"without create_graph=True"
        )

    def remember_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)

    qualified = f"megalodon_core::{spec.name}"
    _library.impl(spec.name, forward_cpu, "CPU")
    _library.impl(f"{spec.name}_backward", backward_cpu, "CPU")
    torch.library.register_fake(qualified, forward_fake, lib=_library)
    torch.library.register_fake(f"{qualified}_backward", backward_fake, lib=_library)
    backward_op = getattr(torch.ops.megalodon_core, f"{spec.name}_backward").default
    torch.library.register_autograd(qualified, differentiate, setup_context=setup_context, lib=_library)
    torch.library.register_autograd(
        f"{qualified}_backward", refuse, setup_context=remember_nothing, lib=_library
    )


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


def _check_placement(spec: Spec, names: Sequence[str], tensors: Sequence[Any]) -> None:
    """Raises ValueError unless all tensors are strided and on one device that has kernels (or on meta)."""
    device = tensors[0].device
    if device.type not in ("cpu", "meta"):
        raise ValueError(
            f"{spec.name}: {names[0]}: expected a tensor on cpu (kernels exist for no other), got {device}"
        )
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is None:
            continue
        if tensor.device != device:
            raise ValueError(
                f"{spec.name}: {name}: expected a tensor on {device} like {names[0]}, got {tensor.device}"
            )
        if tensor.layout != torch.strided or tensor.is_nested:
            got = "a nested one" if tensor.is_nested else str(tensor.layout)
            raise ValueError(f"{spec.name}: {name}: expected a strided tensor, got {got}")


def forward(spec: Spec, inputs: Sequence[Any], attributes: Sequence[Any]) -> tuple[Any, ...]:
    """Outputs of the operator, differentiable by autograd."""
    _check_placement(spec, [declared.name for declared in spec.inputs], inputs)
    outputs = getattr(torch.ops.megalodon_core, spec.name)(*_promoted(spec, inputs), *attributes)
    return outputs if len(spec.outputs) > 1 else (outputs,)


def backward(
    spec: Spec, cotangents: Sequence[Any], inputs: Sequence[Any], attributes: Sequence[Any]
) -> tuple[Any, ...]:
    """One gradient per input, None where there is none."""
    names = [declared.name for declared in spec.inputs] + [f"d{name}" for name in spec.cotangents]
    _check_placement(spec, names, [*inputs, *cotangents])
    own = getattr(torch.ops.megalodon_core, f"{spec.name}_backward")(*cotangents, *inputs, *attributes)
    return spec.spread_gradients(cotangents[0], inputs, own)


for _spec in SPECS:
    register(_spec)
