"""The instruction set that is forced is the one that runs, in every operator, and must be available."""

import itertools
import os
import subprocess
import sys

import pytest
import torch
from calls import OPERATORS, cotangents, example
from frontends import TORCH, nested_cotangents
from megalodon_core import ops, runtime


@pytest.fixture(autouse=True)
def _restored():
    before = runtime.isa()
    yield
    runtime.set_isa(before)


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_runs_on_the_forced_set(op):
    call = example(op, torch.float32)
    drawn = nested_cotangents(call, cotangents(TORCH.forward(call)))
    # Each set is forced after each other one has run, so that what is asserted is what this operator did.
    for before, after in itertools.permutations(runtime.available_isas(), 2):
        runtime.set_isa(before)
        getattr(ops, op)(**call.arguments())
        assert runtime.last_isa() == before
        runtime.set_isa(after)
        getattr(ops, op)(**call.arguments())
        assert runtime.last_isa() == after
        runtime.set_isa(before)
        getattr(ops, op).backward(drawn, **call.arguments())
        assert runtime.last_isa() == before


def test_baseline_is_always_available():
    assert "baseline" in runtime.available_isas()
    assert runtime.isa() in runtime.available_isas()


def test_an_unavailable_set_is_an_error():
    before = runtime.isa()
    with pytest.raises(ValueError, match="abacus"):
        runtime.set_isa("abacus")
    assert runtime.isa() == before


@pytest.mark.parametrize("name", runtime.available_isas())
def test_the_environment_forces_a_set(name):
    assert import_with(name).stdout.strip() == name


def test_the_environment_cannot_force_an_unavailable_set():
    finished = import_with("abacus")
    assert finished.returncode != 0
    assert "ValueError" in finished.stderr
    assert "abacus" in finished.stderr


def import_with(isa: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from megalodon_core import runtime; print(runtime.isa())"],
        env=os.environ | {"MEGALODON_CORE_ISA": isa},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
