"""The `megalodon-core` program: its arguments, its exit codes, and nothing that needs torch.

Exit codes: 0 done, 2 a mistake in what was asked (one line on stderr says which), 130 interrupted (one line
on stderr says how to go on).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn, TypeVar

import megalodon_core
from megalodon_core import _core, runtime
from megalodon_core.errors import UserError
from megalodon_core.training.run_directory import RunDirectory

_EXTRA = "megalodon-core[train]"
N = TypeVar("N", int, float)

_OPTIONAL = {"torch", "safetensors", "rich", "matplotlib"}

_DATA_HELP = """\
text is read as bytes (256 values); a directory means every file below it that is not hidden.
token files hold integers and need --vocab-size: .npy (1-D integer array) or .bin (raw little-endian
uint16, or uint32 with --token-dtype uint32).
Several files are split into training and held-out by a hash of their relative path, one in six held
out; of a single file the last sixth is held out; --held-out names the held-out files instead."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the process's exit code."""
    args = _parser().parse_args(arguments)
    try:
        _check_isa()
        _check_together(args)
        run: Callable[[argparse.Namespace], None] = (
            _info
            if args.command == "info"
            else getattr(import_module("megalodon_core.cli.commands"), args.command)
        )
        run(args)
    except UserError as error:
        return _fail(args.command, str(error))
    except OSError as error:
        return _fail(args.command, f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except ModuleNotFoundError as error:
        if error.name not in _OPTIONAL:
            raise
        return _fail(args.command, f"needs {error.name}, which is not installed: pip install '{_EXTRA}'")
    except KeyboardInterrupt as interruption:
        what = str(interruption) or "interrupted"
        print(f"\nmegalodon-core {args.command}: {what}; {_how_to_go_on(args)}", file=sys.stderr)
        return 130
    return 0


def _check_isa() -> None:
    """UserError if MEGALODON_CORE_ISA names no instruction set that runs here."""
    try:
        runtime.isa()
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_together(args: argparse.Namespace) -> None:
    """UserError if an option was given that would be ignored, because of another or for lack of it."""
    if args.command == "train":
        if args.resume:
            _refuse_beside("--resume", set(args.given) - {"--run", "--threads"}, args)
        if args.config is not None:
            _refuse_beside("--config", {"--layers", "--dim", "--chunk-size", "--preset"}, args)
        if args.preset is not None:
            _refuse_beside("--preset", {"--layers", "--dim", "--chunk-size"}, args)
    if args.command in ("train", "eval") and not args.data:
        for option in args.given:
            if option in ("--held-out", "--vocab-size", "--token-dtype"):
                raise UserError(f"{option} needs --data")


def _refuse_beside(option: str, ignored: set[str], args: argparse.Namespace) -> None:
    found = list(dict.fromkeys(other for other in args.given if other in ignored))
    if found:
        raise UserError(f"{', '.join(found)} would be ignored beside {option}; give one or the other")


def _info(args: argparse.Namespace) -> None:
    from megalodon_core.cli import info

    facts = info.collect()
    print(json.dumps(facts, indent=2) if args.json else "\n".join(info.lines(facts)))


def _fail(command: str, message: str) -> int:
    print(f"megalodon-core {command}: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _how_to_go_on(args: argparse.Namespace) -> str:
    if args.command == "train" and RunDirectory(args.run).exists():
        return f"continue with: megalodon-core train --run {args.run} --resume"
    return (
        "run the same command again to continue" if args.command == "demo" else "run the same command again"
    )


class _Given(argparse.Action):
    """Stores what an option was given, and adds the option to `given`, which tells it from a default."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given += tuple(self.option_strings[:1])


class _Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is one line, and whose `given` names the options with a value."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.register("action", None, _Given)
        self.set_defaults(given=())

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="megalodon-core",
        description="Train, evaluate and use Megalodon language models.",
    )
    parser.add_argument("--version", action="version", version=f"megalodon-core {megalodon_core.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=summary, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    _train_arguments(
        command(
            "train",
            "train a model on text or token files",
            "Train a model from scratch, with checkpoints and resume.\n\n"
            f"Data: {_DATA_HELP}\nWithout --data: the Python standard library's own sources.",
        )
    )
    _eval_arguments(
        command(
            "eval",
            "read one long stream and report bits by position",
            "Read one long held-out stream through the model's constant-size state and report bits per byte\n"
            "by position, memory and speed: a table, and JSON and a PNG where asked.\n\n"
            "Without --data the stream is what the run held out; with --data all of those files in order.",
        )
    )
    _generate_arguments(
        command("generate", "continue a prompt", "Continue a prompt, printing as it is produced.")
    )
    _bench_arguments(
        command(
            "bench",
            "time every operator beside plain PyTorch",
            "Time every operator beside its floor and a plain PyTorch implementation of the same formula.\n"
            "A row is printed only after both have been found equal; times are medians of alternating runs.",
        )
    )
    info = command(
        "info", "what is installed and what it will run on", "Print versions, instruction sets, frameworks."
    )
    info.add_argument("--json", action="store_true", help="print JSON instead of a table")
    _demo_arguments(
        command(
            "demo",
            "train, read a million bytes, write some Python, time the operators",
            "Train a byte-level model on the Python standard library's sources for a few minutes, read a\n"
            "held-out stream of a million bytes at constant memory, complete a prompt, and time every\n"
            "operator beside plain PyTorch. Every number printed is measured in this run. After an\n"
            "interruption the same command continues.",
        )
    )
    return parser


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    run = parser.add_argument_group("run")
    run.add_argument("--run", metavar="DIR", required=True, help="where checkpoints go")
    run.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in DIR as it was begun; beside it only --threads",
    )
    run.add_argument(
        "--checkpoint-every", type=_count, default=100, metavar="STEPS", help="default: %(default)s"
    )
    _threads_argument(run)
    _data_arguments(parser)
    _model_arguments(parser)
    _length_of_training_arguments(parser)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--batch-size", type=_count, default=16, metavar="ROWS", help="default: %(default)s"
    )
    training.add_argument(
        "--segment-length", type=_count, default=256, metavar="N", help="default: %(default)s"
    )
    training.add_argument(
        "--carry",
        type=_count,
        default=1,
        metavar="SEGMENTS",
        help="consecutive segments read with the state carried over, before a row starts afresh "
        "(1: no carrying; default: %(default)s)",
    )
    training.add_argument(
        "--learning-rate", type=_positive, default=6e-3, metavar="LR", help="default: %(default)s"
    )
    training.add_argument(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of matrix products; auto takes the one that is faster here (default: %(default)s)",
    )
    training.add_argument("--seed", type=_natural, default=0, help="default: %(default)s")


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run directory of train, or a saved model")
    parser.add_argument(
        "--length",
        type=_count,
        default=1 << 20,
        metavar="N",
        help="predictions to make (default: %(default)s)",
    )
    parser.add_argument(
        "--piece", type=_count, default=4096, metavar="N", help="values per pass (default: %(default)s)"
    )
    parser.add_argument(
        "--compare",
        action="store_true",
        help="also read every piece from an empty state: what the carried state is worth, at twice the time",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--plot", metavar="FILE", help="also draw bits by position, as PNG")
    _threads_argument(parser)
    _data_arguments(parser, held_out=False)


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a run directory of train, or a saved model")
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--prompt", metavar="TEXT", help="text to continue (byte-level models)")
    prompt.add_argument("--prompt-file", metavar="FILE", help="a file with the text to continue")
    prompt.add_argument(
        "--prompt-tokens", type=_natural, nargs="+", metavar="ID", help="token ids to continue"
    )
    parser.add_argument(
        "--max-new-tokens", type=_count, default=256, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--temperature",
        type=_not_negative,
        default=0.7,
        metavar="T",
        help="0 is greedy (default: %(default)s)",
    )
    parser.add_argument("--top-k", type=_count, metavar="K", help="choose among the K likeliest")
    parser.add_argument("--top-p", type=_share, default=1.0, metavar="P", help="default: %(default)s")
    parser.add_argument("--seed", type=_natural, default=0, help="default: %(default)s")
    _threads_argument(parser)


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--operators", nargs="+", metavar="NAME", help="only these (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="the shapes of the demo's model, instead of mega200M's"
    )
    parser.add_argument(
        "--seconds",
        type=_positive,
        default=2.0,
        metavar="S",
        help="spent on timing each operator (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    _threads_argument(parser)


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", metavar="DIR", default="demo", help="where everything is written (default: %(default)s)"
    )
    _length_of_training_arguments(parser)
    parser.add_argument(
        "--length",
        type=_count,
        default=1 << 20,
        metavar="N",
        help="held-out bytes to read (default: %(default)s)",
    )
    parser.add_argument("--prompt", default="class Queue:\n", metavar="TEXT", help="default: %(default)r")
    _threads_argument(parser)


def _threads_argument(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--threads", type=_threads, metavar="N", help="CPU threads (default: as torch decides)"
    )


def _data_arguments(parser: argparse.ArgumentParser, held_out: bool = True) -> None:
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data", nargs="+", default=[], metavar="PATH", help="text files, directories, or token files"
    )
    if held_out:
        data.add_argument(
            "--held-out",
            nargs="+",
            default=[],
            metavar="PATH",
            help="held-out files beside --data, if not by split",
        )
    data.add_argument("--vocab-size", type=_count, metavar="N", help="number of token ids (token files only)")
    data.add_argument(
        "--token-dtype",
        choices=("uint16", "uint32"),
        default="uint16",
        help="of .bin files (default: %(default)s)",
    )


def _model_arguments(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument("--layers", type=_count, default=4, metavar="N", help="default: %(default)s")
    model.add_argument(
        "--dim",
        type=_count,
        default=192,
        metavar="D",
        help="width; queries are D/4, values and the feed-forward layer 2D wide (default: %(default)s)",
    )
    model.add_argument("--chunk-size", type=_count, default=256, metavar="C", help="default: %(default)s")
    model.add_argument(
        "--config",
        metavar="FILE",
        help="JSON of MegalodonConfig fields, instead of the three above; vocab_size is always the data's",
    )
    model.add_argument(
        "--preset", metavar="NAME", help="a named configuration such as mega200M, instead of all these"
    )


def _length_of_training_arguments(parser: argparse.ArgumentParser) -> None:
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_count, metavar="N", help="train for N steps")
    length.add_argument(
        "--minutes",
        type=_positive,
        default=4.0,
        metavar="M",
        help="as many steps as fit (default: %(default)s)",
    )


def _number(kind: Callable[[str], N], accept: Callable[[N], bool], expected: str) -> Callable[[str], N]:
    """An argparse type: `kind(text)` if `accept` likes it, else a complaint that says what was `expected`."""

    def parse(text: str) -> N:
        complaint = argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
        try:
            value = kind(text)
        except ValueError:
            raise complaint from None
        if not accept(value):
            raise complaint
        return value

    return parse


_count = _number(int, lambda value: value >= 1, "a whole number of at least 1")
_threads = _number(
    int, lambda value: 1 <= value <= _core.thread_limit, f"a whole number from 1 to {_core.thread_limit}"
)
_natural = _number(int, lambda value: 0 <= value < 2**63, "a whole number of at least 0")
_positive = _number(float, lambda value: 0 < value < math.inf, "a positive number")
_not_negative = _number(float, lambda value: 0 <= value < math.inf, "a number of at least 0")
_share = _number(float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")
