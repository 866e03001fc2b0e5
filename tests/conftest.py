"""Settings that hold for every test, and the backend that the operators run on."""

from collections.abc import Iterator

import frontends
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        choices=frontends.BACKENDS,
        default="cpu",
        help="where the tests of operators and models run: the CPU; the first GPU; or the CPU through the "
        "code that moves arrays to a GPU and back",
    )


def pytest_configure(config: pytest.Config) -> None:
    backend = config.getoption("--backend")
    if backend == "cuda" and (reason := frontends.why_no_gpu()):
        raise pytest.UsageError(f"--backend=cuda: {reason}")
    frontends.use_backend(backend)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what the backend cannot run: `cpu("reason")` elsewhere, `large` over the interpreter."""
    elsewhere = SIMT or config.getoption("--backend") != "cpu"
    for item in items:
        cpu = item.get_closest_marker("cpu")
        if cpu and elsewhere:
            item.add_marker(pytest.mark.skip(reason=f"of the CPU alone: {cpu.args[0]}"))
        elif SIMT and item.get_closest_marker("large"):
            item.add_marker(pytest.mark.skip(reason="too many tokens for the interpreter"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "isa" in metafunc.fixturenames:
        isas = ["gpu"] if frontends.PLACE.on_gpu else runtime.available_isas()
        metafunc.parametrize("isa", isas, indirect=True, scope="session")


@pytest.fixture(scope="session")
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The instruction set that is forced, each of this CPU in turn; "gpu" where the operators run on one.

    `frontends.assert_the_backend_ran` says after an operator whether it obeyed.
    """
    if request.param == "gpu":
        yield request.param
        return
    before = runtime.isa()
    runtime.set_isa(request.param)
    assert runtime.isa() == request.param
    yield request.param
    runtime.set_isa(before)
