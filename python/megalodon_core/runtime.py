"""How the kernels run: instruction set, threads and memory."""

from __future__ import annotations

import operator

from megalodon_core import _core
from megalodon_core._core import available_isas, isa, last_isa, set_isa

__all__ = [
    "available_isas",
    "isa",
    "keep_freed_memory",
    "last_isa",
    "num_threads",
    "set_isa",
    "set_num_threads",
]


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


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed arrays for new ones, instead of returning it to the system.

    glibc's malloc maps each block above 32 MiB anew and unmaps it when it is freed, and the system hands out
    pages more slowly than most operators fill them: a training step on a CPU whose activations are that large
    spends a third of its time there (docs/performance.md). To be called once, before the first large array.
    It holds for all that the process allocates with malloc, torch's CPU tensors among them. After a few steps
    no new pages are needed; the process stays as large as it has been.

    Returns:
        Whether it could be done: False, and nothing changes, where malloc is not glibc's.
    """
    return _core.keep_freed_memory()
