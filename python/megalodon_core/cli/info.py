"""What is installed here and what it will run on; needs neither torch nor anything else of the extras."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import megalodon_core
from megalodon_core import cuda, runtime
from megalodon_core._core import build_info

_FRAMEWORKS = ("numpy", "torch", "safetensors", "rich", "matplotlib")


def collect() -> dict[str, Any]:
    """Versions, compiled instruction sets, the one in use, threads, GPUs and the frameworks found."""
    return {
        "megalodon_core": megalodon_core.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "build": build_info(),
        "instruction_sets": list(runtime.available_isas()),
        "instruction_set": runtime.isa(),
        "threads": runtime.num_threads(),
        "cuda": cuda.status(),
        "frameworks": {name: _version(name) for name in _FRAMEWORKS},
    }


def lines(facts: dict[str, Any]) -> list[str]:
    """`facts` as aligned lines for a person."""
    rows = [
        ("megalodon_core", facts["megalodon_core"]),
        ("Python", facts["python"]),
        ("platform", facts["platform"]),
        *((f"build: {name}", str(value)) for name, value in facts["build"].items() if name != "version"),
        ("instruction sets usable here", ", ".join(facts["instruction_sets"])),
        ("instruction set in use", facts["instruction_set"]),
        ("threads", str(facts["threads"])),
        ("CUDA", facts["cuda"]),
        *((name, version or "not installed") for name, version in facts["frameworks"].items()),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
