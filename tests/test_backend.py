"""`pytest --backend`: why a GPU cannot be used, and the way there and back on a machine without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import frontends
import pytest
import torch

REPOSITORY = Path(__file__).parent.parent


def pytest_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.skipif(frontends.why_no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_the_run_ends_at_once_and_says_why():
    finished = pytest_run("--backend=cuda", "tests/ops")
    assert finished.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"--backend=cuda: {frontends.why_no_gpu()}" in finished.stderr
    assert "passed" not in finished.stdout


def test_what_is_moved_passes_and_what_is_of_the_cpu_is_skipped():
    """All kinds of case: autograd, explicit gradients, layouts, states, precision, models."""
    suites = ["test_golden.py", "test_layouts.py", "test_autograd.py", "test_few_row_linear.py"]
    finished = pytest_run(
        "--backend=moved",
        "-k",
        "normalized_attention or timestep_norm or golden or few_row",
        "tests/model/test_golden_models.py",
        "tests/test_precision.py",
        *(f"tests/ops/{name}" for name in suites),
    )
    assert finished.returncode == 0, finished.stdout
    assert "of the CPU alone: a GPU has no such operator" in finished.stdout


def test_a_tensor_is_copied_there_and_back():
    place = frontends.Place()
    x = torch.randn(3, 4, requires_grad=True)
    assert place.back(place.to(x)) is x
    place.device = torch.device("cpu")
    there = place.to(x)
    back = place.back(there)
    assert len({x.data_ptr(), there.data_ptr(), back.data_ptr()}) == 3
    assert torch.equal(x, back)
    back.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))


def test_results_must_come_from_where_the_operators_run():
    place = frontends.Place()
    place.device = torch.device("cpu")
    with pytest.raises(AssertionError):
        place.back(torch.empty(2, device="meta"))
