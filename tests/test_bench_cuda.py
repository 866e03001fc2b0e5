"""The benchmark of a GPU runs, at tiny shapes on the CPU, and says why it cannot where there is no GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import frontends
import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


def bench(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "run_cuda.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.skipif(frontends.why_no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_why(tmp_path):
    finished = bench("--output", tmp_path)
    assert finished.returncode == 1
    assert f"no benchmark of a GPU: {frontends.why_no_gpu()}" in finished.stderr


def test_every_section_runs_at_tiny_shapes(tmp_path, monkeypatch):
    options = ["--device", "cpu", "--small", "--seconds", 0, "--peers", "eager", "flash"]
    finished = bench(*options, "--output", tmp_path)
    assert finished.returncode == 0, finished.stderr
    written = json.loads((tmp_path / "figures.json").read_text())
    figures = written["figures"]
    assert (tmp_path / "floor.png").stat().st_size > 0
    assert all(value > 0 for value in figures.values())
    assert {row["case"] for row in written["rows"]} >= {"cema", "timestep_norm", "normalized_attention"}
    assert figures["operator.normalized_attention.bfloat16.forward.flash"]
    assert figures["long.cema.bfloat16.both.seconds"] > figures["long.cema.bfloat16.forward.seconds"] > 0

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from bars import GPU_BARS

    judged = {bar["figure"] for bar in written["bars"]}
    of_lengths_and_memory = {bar.figure for bar in GPU_BARS if bar.figure.startswith("layer.")}
    assert judged == {bar.figure for bar in GPU_BARS} - of_lengths_and_memory
    for length in (32, 64):
        assert any(fnmatchcase(name, f"layer.{length}.llama_*.both") for name in figures)
        assert f"layer.{length}.megalodon.both" in figures


WRONG = {
    "ours": "run_cuda.GPU_CASES = [replace(case, ours=lambda size: wrong), right]",
    "compiled": "other_peers.available = lambda: ({'compiled': peer}, [])",
}
CODE = """
import sys
from dataclasses import replace
import other_peers, run_cuda
from megalodon_core import ops
from megalodon_core.bench import harness

case, right = [case for case in run_cuda.GPU_CASES if case.operator in ("silu_mul", "rms_norm")][::-1]
run_cuda.GPU_CASES = [case]
wrong = lambda gate, value: 1.05 * ops.silu_mul(gate, value)
peer = lambda case, size, inputs, cotangents: harness.torch_side(wrong, inputs, cotangents, True)
{patch}
sys.argv[1:] = {arguments}
raise SystemExit(run_cuda.main())
"""


@pytest.mark.parametrize("side", WRONG)
def test_what_is_wrong_is_named_and_not_timed(side, tmp_path):
    """A wrong peer is left out; a wrong operator too, and then the run fails."""
    options = ["--device", "cpu", "--small", "--seconds", "0", "--peers", "eager", "compiled"]
    options += ["--sections", "operators", "--output", str(tmp_path)]
    finished = subprocess.run(
        [sys.executable, "-c", CODE.format(patch=WRONG[side], arguments=options)],
        env=os.environ | {"PYTHONPATH": f"{BENCHMARKS}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == (side == "ours"), finished.stderr
    written = json.loads((tmp_path / "figures.json").read_text())
    assert [row["case"] for row in written["rows"]] == 3 * ["rms_norm" if side == "ours" else "silu_mul"]
    assert f"silu_mul in bfloat16: result 0 of {side} is" in written["complaints"][0]
    assert all("compiled" not in row["peers"] for row in written["rows"] if side == "compiled")
