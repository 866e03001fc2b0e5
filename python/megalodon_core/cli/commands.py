"""The commands that need torch, one function each; `cli` has parsed and checked their arguments."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import torch

from megalodon_core import runtime
from megalodon_core.bench.report import run_bench
from megalodon_core.cli.completion import continued, print_ids, print_text
from megalodon_core.cli.demo import run_demo
from megalodon_core.config import MegalodonConfig
from megalodon_core.display import output_console
from megalodon_core.errors import UserError
from megalodon_core.files import read_json
from megalodon_core.training import data
from megalodon_core.training.evaluation_run import run_evaluation
from megalodon_core.training.run import Plan, load_model, print_result, small_config, start_run, train_run
from megalodon_core.training.run_directory import RunDirectory
from megalodon_core.training.trainer import TrainSettings


def train(args: Namespace) -> None:
    """Start a run, or continue one; print what it reached."""
    _use_threads(args)
    runtime.keep_freed_memory()
    directory = RunDirectory(args.run)
    if args.resume:
        if not directory.exists():
            raise UserError(f"{args.run}: holds no run to resume")
        plan = Plan.of(directory)
        corpus = data.load(plan.source)
    else:
        if directory.exists():
            raise UserError(
                f"{args.run}: already holds a run; continue it with --resume or name another directory"
            )
        source = _data_source(args, args.held_out)
        corpus = data.load(source)
        settings = TrainSettings(
            steps=args.steps or 1,
            batch_size=args.batch_size,
            segment_length=args.segment_length,
            carry=args.carry,
            learning_rate=args.learning_rate,
            seed=args.seed,
        )
        plan = Plan(_model_config(args, corpus), settings, source, args.checkpoint_every)
        plan = start_run(
            directory,
            corpus,
            plan,
            precision=args.precision,
            minutes=None if args.steps else args.minutes,
            say=_say,
        )
    result = train_run(directory, corpus, plan, say=_say)
    print_result(output_console(), result, corpus.unit)


def eval(args: Namespace) -> None:
    """Read one stream and print, write and draw how well it was predicted."""
    _use_threads(args)
    model, plan = load_model(Path(args.model), _say)
    if args.data:
        corpus = data.whole(_data_source(args))
    else:
        corpus = data.load(plan.source if plan is not None else data.DataSource())
    run_evaluation(
        output_console(),
        model,
        corpus,
        args.length,
        piece=args.piece,
        compare=args.compare,
        json_path=args.json,
        plot_path=args.plot,
        plan=plan,
    )


def generate(args: Namespace) -> None:
    """Continue a prompt, writing each token as it is produced."""
    _use_threads(args)
    model, _ = load_model(Path(args.model), _say)
    sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
    if args.prompt_tokens is not None:
        print_ids(continued(model, args.prompt_tokens, args.max_new_tokens, **sampling), sys.stdout)
        return
    text = args.prompt.encode() if args.prompt is not None else Path(args.prompt_file).read_bytes()
    if model.config.vocab_size != data.BYTE_VALUES:
        raise UserError(f"{args.model}: not a byte-level model; give --prompt-tokens")
    print_text(continued(model, list(text), args.max_new_tokens, **sampling), sys.stdout)


def bench(args: Namespace) -> None:
    """Time every operator beside plain PyTorch."""
    _use_threads(args)
    run_bench(
        output_console(),
        operators=args.operators,
        quick=args.quick,
        seconds=args.seconds,
        json_path=args.json,
    )


def demo(args: Namespace) -> None:
    """Train, read a million bytes, complete a prompt, time the operators."""
    _use_threads(args)
    run_demo(
        output_console(),
        Path(args.output),
        steps=args.steps,
        minutes=args.minutes,
        length=args.length,
        prompt=args.prompt,
        say=_say,
    )


def _data_source(args: Namespace, held_out: Sequence[str] = ()) -> data.DataSource:
    """What the data options name; UserError if one is for token files and there are none."""
    source = data.DataSource(tuple(args.data), tuple(held_out), args.vocab_size, args.token_dtype)
    for option, suffixes in (("--vocab-size", data.TOKEN_SUFFIXES), ("--token-dtype", (".bin",))):
        if option in args.given and data.suffixes(source).isdisjoint(suffixes):
            raise UserError(f"{option} is for {' and '.join(suffixes)} files, and --data names none")
    return source


def _model_config(args: Namespace, corpus: data.Corpus) -> MegalodonConfig:
    """The configuration that the model options describe, for the corpus's vocabulary."""
    try:
        if args.config is not None:
            return MegalodonConfig.from_dict(
                {**read_json(Path(args.config)), "vocab_size": corpus.vocab_size}
            )
        if args.preset is not None:
            return MegalodonConfig.preset(args.preset, vocab_size=corpus.vocab_size)
        return small_config(args.layers, args.dim, args.chunk_size, corpus.vocab_size)
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def _use_threads(args: Namespace) -> None:
    if args.threads is not None:
        torch.set_num_threads(args.threads)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
