"""The demo from its first line to its last, on a very small budget."""

from __future__ import annotations

import json

from megalodon_core.bench.report import run_bench
from megalodon_core.cli import demo
from megalodon_core.training import run


def test_the_demo_runs_through_and_continues(program, tmp_path, monkeypatch):
    def bench_two(console, **options):
        return run_bench(console, **{**options, "operators": ["silu_mul", "rms_norm"], "seconds": 0.01})

    monkeypatch.setattr(demo, "run_bench", bench_two)
    monkeypatch.setattr(run, "steps_per_second", lambda plan, corpus: 1.0)
    arguments = [
        "demo",
        "--output",
        tmp_path / "demo",
        "--steps",
        1,
        "--length",
        5000,
        "--prompt",
        "import os\n",
    ]
    first = program(*arguments)
    assert first.code == 0
    assert "trained: 1 steps" in first.out
    assert "import os\n" in first.out
    assert json.loads((tmp_path / "demo" / "evaluation.json").read_text())["length"] == 5000
    assert (tmp_path / "demo" / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((tmp_path / "demo" / "bench.json").read_text())["rows"]
    assert {row["case"] for row in rows} == {"rms_norm", "silu_mul"}
    again = program(*arguments)
    assert again.code == 0
    assert "trained earlier: 1 steps" in again.out
