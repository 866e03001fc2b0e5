"""Settings that hold for every test."""

from hypothesis import HealthCheck, settings

# Derandomized, so that a run is reproducible; no deadline, since a first example may import or compile.
settings.register_profile(
    "megalodon_core",
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("megalodon_core")
