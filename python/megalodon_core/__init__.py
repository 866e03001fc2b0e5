"""Fast operators of Megalodon (arXiv 2404.08801), which reads unlimited context at linear cost.

`megalodon_core.ops` holds the operators, for torch tensors and NumPy arrays alike; it needs no torch.
`Megalodon`, `MegalodonConfig` and `generate` are the language model made of them; they need the extra
`[torch]`.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from megalodon_core import ops, runtime
from megalodon_core._core import build_info

if TYPE_CHECKING:
    from megalodon_core.checkpoint import from_pretrained, load_released, save_pretrained
    from megalodon_core.config import MegalodonConfig
    from megalodon_core.decoding import Decoder
    from megalodon_core.generation import generate
    from megalodon_core.model import Megalodon

__version__: str = build_info()["version"]

# Names that need torch, or are not needed by users of the operators, and where each lives.
_LAZY = {
    "Decoder": "decoding",
    "Megalodon": "model",
    "MegalodonConfig": "config",
    "from_pretrained": "checkpoint",
    "generate": "generation",
    "load_released": "checkpoint",
    "save_pretrained": "checkpoint",
}

__all__ = [
    "Decoder",
    "Megalodon",
    "MegalodonConfig",
    "__version__",
    "from_pretrained",
    "generate",
    "load_released",
    "ops",
    "runtime",
    "save_pretrained",
]


def _has_torch() -> bool:
    try:
        return find_spec("torch") is not None
    except ModuleNotFoundError:  # from a finder that refuses it
        return False


if not TYPE_CHECKING and not _has_torch():
    # `import *`, `dir` and `help` then leave out what needs torch. Asked for, it says what is missing.
    __all__ = ["__version__", "ops", "runtime"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
