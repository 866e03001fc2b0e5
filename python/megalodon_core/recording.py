"""Calls of the core that run again without Python: for a CPU what a CUDA graph is for a GPU."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megalodon_core import _core
from megalodon_core.frontends import torch as core

aten = torch.ops.aten


class Recording(TorchDispatchMode):
    """Notes what the core computes inside of a `with`, and `replay`s it on the same memory.

        with torch.no_grad(), Recording() as recording:
            y = ops.rms_norm(x, weight) + x
        x.copy_(other)
        recording.replay()    # y is that of other

    Of torch's operators it knows those that a model has between ours: silu, sum and copy of tensors of one
    shape and type, which the core computes in their place, and those that compute nothing (views, new
    tensors). After any other one `foreign` is its name, and the recording lacks it and cannot be replayed.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = _core.Recording()
        self.foreign: str | None = None

    def __enter__(self) -> Recording:
        if torch.is_inference_mode_enabled():  # where torch does not say what its operators are made of
            raise RuntimeError("Recording: expected torch out of inference mode")
        self._calls.start()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._calls.stop()
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _TRANSLATIONS and not kwargs and _alike(args):
            compute, types_of_core = _TRANSLATIONS[func]
            if args[0].dtype in types_of_core:
                return compute(*args)
        if func not in _WITHOUT_COMPUTATION and not func.is_view:
            self.foreign = self.foreign or str(func)
        return func(*args, **kwargs)

    def replay(self) -> None:
        """Runs what was noted again, with torch's number of threads.

        Raises:
            RuntimeError: `foreign` is not None.
        """
        if self.foreign is not None:
            raise RuntimeError(f"Recording: expected calls of the core alone, got {self.foreign}")
        self._calls.replay(torch.get_num_threads())


_FLOATING = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_WHOLE = frozenset({torch.int32, torch.int64, torch.bool})
# What the core computes in the place of an operator, and for which types.
_TRANSLATIONS: dict[Any, tuple[Callable[..., Tensor], frozenset[torch.dtype]]] = {
    aten.silu.default: (core.silu, _FLOATING),
    aten.add.Tensor: (core.add, _FLOATING),
    aten.copy_.default: (core.copy, _FLOATING | _WHOLE),
}
_WITHOUT_COMPUTATION = frozenset({aten.empty.memory_format, aten.empty_like.default})


def _alike(tensors: tuple[Any, ...]) -> bool:
    """Whether all are tensors that the core reads and writes where they are, of one shape and type."""
    return all(isinstance(tensor, Tensor) and _is_plain(tensor, tensors[0]) for tensor in tensors)


def _is_plain(tensor: Tensor, first: Tensor) -> bool:
    return (
        tensor.is_cpu
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
        and tensor.shape == first.shape
        and tensor.dtype == first.dtype
        and 1 <= tensor.ndim <= _core.max_rank
        and tensor.numel() > 0
        and tensor.data_ptr() % tensor.element_size() == 0
    )
