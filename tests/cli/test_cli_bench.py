"""`bench`: no time is shown unless both sides agree."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from megalodon_core import ops
from megalodon_core.bench import harness
from megalodon_core.bench.operators import CASES, TINY
from megalodon_core.bench.timing import interleave

DTYPES = (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_operator_agrees_with_its_peer_and_is_timed(case):
    rows = harness.measure(case, TINY, DTYPES, seconds=0.0)
    types = ["float32", "bfloat16"] if any(case.activations) else ["float32"]
    directions = harness.DIRECTIONS if case.differentiable else ["forward"]
    assert [(row.dtype, row.direction) for row in rows] == [(t, d) for t in types for d in directions]
    for row in rows:
        assert row.seconds > 0
        assert row.floor > 0
        assert row.peers["eager"] > 0
        assert row.share == row.floor / row.seconds


def test_every_operator_is_timed():
    assert {case.operator for case in CASES} == {name for name in ops.__all__ if name.islower()}


def _silu_mul(ours):
    case = next(case for case in CASES if case.operator == "silu_mul")
    return replace(case, ours=lambda size: ours)


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return dy * 1.05


WRONG = {
    "value": lambda gate, value: ops.silu_mul(gate, value) * 1.05,
    "NaN": lambda gate, value: ops.silu_mul(gate, value) * float("nan"),
    "gradient": lambda gate, value: ops.silu_mul(WrongGradient.apply(gate), value),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_different_results_are_not_timed(wrong, dtype):
    with pytest.raises(harness.DisagreementError, match=r"silu_mul in .*: result . of ours"):
        harness.measure(_silu_mul(wrong), TINY, [dtype], seconds=0.0)


def test_a_slow_thing_is_run_once_and_a_fast_one_often():
    runs = []

    def sample(name, cost):
        def run():
            runs.append(name)
            clock[0] += cost
            return {"part": cost}

        return run

    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.perf_counter", lambda: clock[0])
        taken = interleave({"slow": sample("slow", 2.0), "fast": sample("fast", 0.25)}, 3.0, patience=1.5)
    assert taken["slow"]["part"] == [2.0]
    assert taken["fast"]["part"] == [0.25] * 6
    assert runs[:3] == ["slow", "fast", "fast"]


def test_bench_prints_a_table_and_writes_json(program, tmp_path):
    figures = tmp_path / "bench.json"
    arguments = ["--quick", "--seconds", 0.01, "--operators", "silu_mul", "rms_norm", "--json", figures]
    outcome = program("bench", *arguments)
    assert outcome.code == 0
    rows = json.loads(figures.read_text())["rows"]
    assert [(row["case"], row["direction"]) for row in rows] == [
        (case, direction) for case in ("rms_norm", "silu_mul") for direction in harness.DIRECTIONS
    ]
    assert all(row["case"] in outcome.out for row in rows)
    assert f"{rows[0]['share']:.2f}" in outcome.out
