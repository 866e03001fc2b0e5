"""The CUDA backend: whether this build has it and this machine can run it. Needs no driver to import."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType


@cache
def kernels() -> ModuleType | None:
    """The compiled module, None in a build without CUDA kernels."""
    if importlib.util.find_spec("megalodon_core._cuda") is None:
        return None
    return importlib.import_module("megalodon_core._cuda")


def devices() -> list[str]:
    """The GPUs that can be used.

    Raises:
        RuntimeError: saying why there are none.
    """
    module = kernels()
    if module is None:
        raise RuntimeError(
            "this build has no CUDA kernels; build with -C cmake.define.MEGALODON_CORE_CUDA=ON"
        )
    found: list[str] = module.devices()
    return found


def status() -> str:
    """The GPUs that can be used, or why there are none."""
    try:
        return ", ".join(devices()) or "no GPU"
    except RuntimeError as error:
        return str(error)
