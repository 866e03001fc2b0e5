"""Settings that hold for every test."""

import pytest
from hypothesis import HealthCheck, settings
from megalodon_core import runtime

SIMT = runtime.available_isas() == ["simt"]
"""Whether this build runs the CUDA kernels over the interpreter (tests/simt), far slower than a GPU."""

# Derandomized, so that a run is reproducible; no deadline, since a first example may import or compile.
settings.register_profile(
    "megalodon_core",
    max_examples=3 if SIMT else 12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("megalodon_core")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if SIMT else ():
        if item.get_closest_marker("cpu"):
            item.add_marker(
                pytest.mark.skip(reason="of the CPU backend, or too many tokens for the interpreter")
            )
