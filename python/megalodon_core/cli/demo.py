"""The demo: train, read a million held-out bytes, complete a prompt, time the operators."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from megalodon_core.bench.report import run_bench
from megalodon_core.cli.completion import continued, print_text
from megalodon_core.display import duration
from megalodon_core.training import data
from megalodon_core.training.evaluation_run import run_evaluation
from megalodon_core.training.run import Plan, load_model, print_result, small_config, start_run, train_run
from megalodon_core.training.run_directory import RunDirectory
from megalodon_core.training.trainer import TrainSettings

_COMPLETION_BYTES = 400


def run_demo(
    console: Console,
    directory: Path,
    *,
    steps: int | None,
    minutes: float,
    length: int,
    prompt: str,
    say: Callable[[str], None],
) -> None:
    """Run all four parts in `directory`; training continues from what an interrupted demo left there."""
    begin = time.perf_counter()
    run = RunDirectory(directory)
    corpus = data.standard_library()
    data.held_out_stream(corpus, length)
    console.rule("1. train on the Python standard library's own sources")
    console.print(
        f"{len(corpus.train):,} bytes to train on, {len(corpus.held_out):,} held out by a hash of the path"
    )
    if run.exists():
        plan = Plan.of(run)
    else:
        plan = start_run(
            run,
            corpus,
            _plan(steps or 1, corpus),
            precision="auto",
            minutes=None if steps is not None else minutes,
            say=say,
        )
    print_result(console, train_run(run, corpus, plan, say=say), corpus.unit)
    model, _ = load_model(directory, say)

    console.rule(f"2. read {length:,} held-out bytes in one stream")
    json_path, plot_path = directory / "evaluation.json", directory / "evaluation.png"
    run_evaluation(
        console, model, corpus, length, compare=True, json_path=json_path, plot_path=plot_path, plan=plan
    )

    console.rule("3. complete a prompt")
    print(prompt, end="", flush=True)
    print_text(
        continued(model, list(prompt.encode()), _COMPLETION_BYTES, temperature=0.6, seed=0), sys.stdout
    )

    console.rule("4. each operator beside plain PyTorch")
    run_bench(console, quick=True, seconds=1.0, json_path=directory / "bench.json")
    console.rule(f"done in {duration(time.perf_counter() - begin)} min, everything is in {directory}")


def _plan(steps: int, corpus: data.Corpus) -> Plan:
    return Plan(
        small_config(layers=4, dim=192, chunk_size=256, vocab_size=corpus.vocab_size),
        TrainSettings(steps=steps),
        data.DataSource(),
        checkpoint_every=100,
    )
