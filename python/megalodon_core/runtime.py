"""How the kernels run: instruction set and threads."""

from __future__ import annotations

import operator

from megalodon_core import _core
from megalodon_core._core import available_isas, isa, last_isa, set_isa

__all__ = ["available_isas", "isa", "last_isa", "num_threads", "set_isa", "set_num_threads"]


_num_threads: int | None = None


def num_threads() -> int:
    """Threads that operators on NumPy arrays use: OpenMP's default until `set_num_threads` is called.

    Operators on torch tensors use `torch.get_num_threads()`.
    """
    return _num_threads if _num_threads is not None else _core.max_threads()


def set_num_threads(count: int) -> None:
    """Set the number of threads of operators on NumPy arrays.

    Raises:
        TypeError, ValueError: unless `count` is an integer in [1, 1024].
    """
    global _num_threads
    if not hasattr(count, "__index__"):
        raise TypeError(f"set_num_threads: count: expected an integer, got {type(count).__name__}")
    value = operator.index(count)
    if not 1 <= value <= _core.thread_limit:
        raise ValueError(
            f"set_num_threads: count: expected an integer in [1, {_core.thread_limit}], got {value}"
        )
    _num_threads = value
