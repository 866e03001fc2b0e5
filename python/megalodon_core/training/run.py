"""Carrying a training run from its first step, or from its newest checkpoint, to its last."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from megalodon_core.checkpoint import CONFIG_FILE, from_pretrained
from megalodon_core.config import MegalodonConfig
from megalodon_core.display import Display, duration
from megalodon_core.errors import UserError
from megalodon_core.model import Megalodon
from megalodon_core.training import data
from megalodon_core.training.evaluation import evaluate
from megalodon_core.training.interruption import stop_on_interrupt
from megalodon_core.training.run_directory import RunDirectory
from megalodon_core.training.trainer import PRECISIONS, Trainer, TrainSettings

_TRIAL_SECONDS = 3.0
_HELD_OUT_GLANCE = 1 << 16


@dataclass(frozen=True)
class Plan:
    """All that a run is made of; written to `run.json`, so that resuming needs no other flag."""

    model: MegalodonConfig
    training: TrainSettings
    source: data.DataSource
    checkpoint_every: int

    def with_training(self, **changes: Any) -> Plan:
        """This plan with some training settings replaced."""
        return replace(self, training=replace(self.training, **changes))

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.to_dict(),
            "training": asdict(self.training),
            "data": self.source.to_dict(),
            "checkpoint_every": self.checkpoint_every,
        }

    @classmethod
    def of(cls, run: RunDirectory) -> Plan:
        """The plan of a run that has begun."""
        try:
            values = run.read_settings()
            return cls(
                MegalodonConfig.from_dict(values["model"]),
                TrainSettings(**values["training"]),
                data.DataSource.from_dict(values["data"]),
                values["checkpoint_every"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{run.path}: run.json is not a run's plan: {error!r}") from error


@dataclass(frozen=True)
class TrainResult:
    """What one call measured; training bits and speed are None if the last step had been taken before."""

    steps: int
    parameters: int
    train_bits: float | None
    held_out_bits: float
    held_out_length: int
    tokens_per_second: float | None
    seconds: float
    checkpoint: str


class Interrupted(KeyboardInterrupt):
    """Training stopped on request, after its last step was saved."""


def small_config(layers: int, dim: int, chunk_size: int, vocab_size: int) -> MegalodonConfig:
    """A model of the released proportions at any width; norm groups of 16 channels if that divides."""
    return MegalodonConfig(
        num_layers=layers,
        model_dim=dim,
        z_dim=max(2, dim // 4),
        value_dim=2 * dim,
        ffn_hidden_dim=2 * dim,
        norm_num_groups=max(1, dim // 16) if dim % 16 == 0 else 1,
        chunk_size=chunk_size,
        vocab_size=vocab_size,
    )


def start_run(
    run: RunDirectory,
    corpus: data.Corpus,
    plan: Plan,
    *,
    precision: str,
    minutes: float | None,
    say: Callable[[str], None],
) -> Plan:
    """Settle what is to be measured on this machine, write the plan down, and return it.

    `precision` "auto" takes the faster one; `minutes`, where given, become as many steps as fit into them.
    """
    speeds = {
        name: steps_per_second(plan.with_training(precision=name), corpus)
        for name in (PRECISIONS if precision == "auto" else (precision,))
    }
    fastest = max(speeds, key=lambda name: speeds[name])
    plan = plan.with_training(precision=fastest)
    if len(speeds) > 1:
        say("steps/s here: " + ", ".join(f"{name} {speed:.2f}" for name, speed in speeds.items()))
    if minutes is not None:
        plan = plan.with_training(steps=max(1, round(minutes * 60 * speeds[fastest])))
        say(f"{plan.training.steps:,} steps should fit into {minutes:g} minutes here")
    run.write_settings(plan.to_dict())
    return plan


def steps_per_second(plan: Plan, corpus: data.Corpus) -> float:
    """The speed of training on this machine, from a few steps of a throw-away model."""
    trainer = Trainer(new_model(plan), corpus.train, plan.training)
    trainer.advance()
    begin, steps = time.perf_counter(), 0
    while (seconds := time.perf_counter() - begin) < _TRIAL_SECONDS or steps == 0:
        trainer.advance()
        steps += 1
    return steps / seconds


def new_model(plan: Plan) -> Megalodon:
    """A freshly initialized float32 model; the plan's seed decides its parameters."""
    torch.manual_seed(plan.training.seed)
    return Megalodon(plan.model)


def load_model(path: Path, say: Callable[[str], None]) -> tuple[Megalodon, Plan | None]:
    """The newest sound checkpoint of a run, with the run's plan, or a saved model, without one."""
    run = RunDirectory(path)
    try:
        if run.exists():
            checkpoint = run.newest(say)
            if checkpoint is None:
                raise UserError(f"{path}: this run has no whole checkpoint yet")
            return from_pretrained(checkpoint), Plan.of(run)
        if (path / CONFIG_FILE).is_file():
            return from_pretrained(path), None
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    raise UserError(f"{path}: neither a run (run.json) nor a saved model ({CONFIG_FILE})")


def train_run(
    run: RunDirectory, corpus: data.Corpus, plan: Plan, *, say: Callable[[str], None]
) -> TrainResult:
    """Train to the last step, from the newest sound checkpoint if there is one, else from a new model.

    Ctrl-C lets the step in hand finish, saves it and raises Interrupted.
    """
    settings = plan.training
    checkpoint = run.newest(say)
    if checkpoint is None:
        trainer = Trainer(new_model(plan), corpus.train, settings)
    else:
        trainer = Trainer.restored(checkpoint, corpus.train, settings)
        say(f"continuing from {checkpoint} (step {trainer.step:,} of {settings.steps:,})")
    begin, first = time.perf_counter(), trainer.step
    losses: deque[float] = deque(maxlen=50)
    tokens_per_step = settings.batch_size * settings.segment_length
    with Display("train", settings.steps, "steps") as display, stop_on_interrupt() as stop:
        while trainer.step < settings.steps:
            losses.append(trainer.advance() / math.log(2))
            speed = (trainer.step - first) * tokens_per_step / (time.perf_counter() - begin)
            text = f"{sum(losses) / len(losses):.3f} bits per {corpus.unit}  {speed:,.0f} {corpus.unit}s/s"
            display.update(trainer.step, text)
            stopped = stop()
            if stopped or trainer.step % plan.checkpoint_every == 0 or trainer.step == settings.steps:
                checkpoint = run.save(trainer.step, trainer.save)
            if stopped:
                raise Interrupted(f"stopped, and saved, at step {trainer.step:,} of {settings.steps:,}")
    seconds = time.perf_counter() - begin
    held_out = evaluate(trainer.model, corpus.held_out[: _HELD_OUT_GLANCE + 1])
    return TrainResult(
        steps=settings.steps,
        parameters=trainer.model.num_parameters(),
        train_bits=sum(losses) / len(losses) if losses else None,
        held_out_bits=held_out.bits,
        held_out_length=held_out.length,
        tokens_per_second=(settings.steps - first) * tokens_per_step / seconds if losses else None,
        seconds=seconds,
        checkpoint=str(checkpoint),
    )


def print_result(console: Console, result: TrainResult, unit: str) -> None:
    """What training reached, in a few lines."""
    if result.train_bits is None:
        console.print(f"trained earlier: {result.steps:,} steps, {result.parameters:,} parameters")
    else:
        console.print(
            f"trained: {result.steps:,} steps, {result.parameters:,} parameters, {duration(result.seconds)} "
            f"({result.tokens_per_second:,.0f} {unit}s/s), at the end {result.train_bits:.3f} bits per {unit}"
        )
    console.print(
        f"held out: {result.held_out_bits:.3f} bits per {unit} over {result.held_out_length:,} {unit}s"
    )
    console.print(f"model: {result.checkpoint}")
