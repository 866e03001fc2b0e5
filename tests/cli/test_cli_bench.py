"""`bench`: no time is shown unless both sides agree."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from megalodon_core import ops
from megalodon_core.bench import harness
from megalodon_core.bench.comparisons import COMPARISONS, TINY


@pytest.mark.parametrize("comparison", COMPARISONS, ids=lambda row: f"{row.operator}-{row.peer_name}")
def test_every_operator_agrees_with_its_peer(comparison):
    assert harness.check(comparison) < 2e-5
    row = harness.measure(comparison, TINY, seconds=0.0)
    assert row.forward.ours > 0
    assert (row.forward_backward is not None) == comparison.differentiable


def test_every_operator_is_compared():
    compared = {comparison.operator for comparison in COMPARISONS}
    assert compared == {name for name in ops.__all__ if name.islower()}


@pytest.mark.parametrize("broken", ["forward", "nan"])
def test_different_results_are_not_timed(broken):
    comparison = next(row for row in COMPARISONS if row.operator == "silu_mul")
    factor = 1.001 if broken == "forward" else float("nan")
    wrong = replace(comparison, ours=lambda size: lambda gate, value: ops.silu_mul(gate, value) * factor)
    with pytest.raises(harness.DisagreementError, match="silu_mul and its peer"):
        harness.measure(wrong, TINY, seconds=0.0)


def test_bench_prints_a_table_and_writes_json(program, tmp_path):
    figures = tmp_path / "bench.json"
    arguments = ["--quick", "--seconds", 0.01, "--operators", "silu_mul", "rms_norm", "--json", figures]
    outcome = program("bench", *arguments)
    assert outcome.code == 0
    rows = json.loads(figures.read_text())["rows"]
    assert [row["operator"] for row in rows] == ["rms_norm", "silu_mul"]
    assert all(row["operator"] in outcome.out for row in rows)
    assert f"{rows[0]['forward']['ours'] * 1e3:.2f}" in outcome.out
