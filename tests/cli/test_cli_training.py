"""Training: what each step reads, checkpoints, and runs that are interrupted."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from megalodon_core.config import MegalodonConfig
from megalodon_core.errors import UserError
from megalodon_core.model import Megalodon
from megalodon_core.training import data
from megalodon_core.training import run as training_run
from megalodon_core.training.run import small_config
from megalodon_core.training.run_directory import RunDirectory
from megalodon_core.training.trainer import PRECISIONS, Trainer, TrainSettings
from megalodon_core.training.windows import Windows
from safetensors.torch import load_file


def test_windows_are_consecutive_until_a_row_starts_afresh():
    windows = Windows(np.arange(1000), rows=2, segment_length=5, carry=4, seed=0)
    before = windows.segment(0)
    assert before.fresh.all()
    for step in range(1, 12):
        now = windows.segment(step)
        np.testing.assert_array_equal(now.targets[:, :-1], now.inputs[:, 1:])
        np.testing.assert_array_equal(now.fresh, [step % 4 == 0, step % 4 == 2])
        for row in range(2):
            if not now.fresh[row]:
                assert now.inputs[row, 0] == before.targets[row, -1]
        before = now


def test_windows_of_too_little_text_are_an_error():
    Windows(np.arange(21), rows=1, segment_length=5, carry=4, seed=0)
    with pytest.raises(UserError, match="needs 21"):
        Windows(np.arange(20), rows=1, segment_length=5, carry=4, seed=0)


def test_the_learning_rate_warms_up_and_falls():
    settings = TrainSettings(steps=100, warmup_steps=10, learning_rate=1.0, final_learning_rate=0.1)
    rates = [settings.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_training_learns(text):
    tokens = data.load(data.DataSource((str(text),))).train
    settings = TrainSettings(steps=40, batch_size=2, segment_length=32, carry=2, warmup_steps=5)
    losses = [(trainer := _trainer(tokens, settings)).advance()]
    losses += [trainer.advance() for _ in range(39)]
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_a_fresh_row_remembers_nothing(text):
    """Once every row has started a new window, nothing of the state carried before is left."""
    tokens = data.load(data.DataSource((str(text),))).train
    settings = TrainSettings(steps=9, batch_size=1, segment_length=6, carry=2)
    used, clean = _trainer(tokens, settings), _trainer(tokens, settings)
    for _ in range(2):
        used.advance()
    clean.model.load_state_dict(used.model.state_dict())
    clean.step = used.step
    assert used.advance() == clean.advance()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_equals_an_uninterrupted_one(program, text, tmp_path, tiny, precision):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    arguments = ["--data", text, "--steps", 10, *tiny, "--precision", precision]
    assert program("train", "--run", straight, *arguments).code == 0
    assert program("train", "--run", broken, *arguments).code == 0
    for path in (broken / "checkpoints").glob("*10"):
        _remove(path)
    outcome = program("train", "--run", broken, "--resume")
    assert outcome.code == 0
    assert "step 8 of 10" in outcome.err
    for name in ("model.safetensors", "training.safetensors"):
        expected = load_file(straight / "checkpoints" / "step-00000010" / name)
        got = load_file(broken / "checkpoints" / "step-00000010" / name)
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(got[key], value), key


def test_dropout_resumes_in_the_middle_of_its_randomness(text, tmp_path):
    tokens = data.load(data.DataSource((str(text),))).train
    settings = TrainSettings(steps=9, batch_size=2, segment_length=9, carry=3)
    config = small_config(1, 16, 8, 256).to_dict() | {"dropout": 0.3, "attention_dropout": 0.2}
    torch.manual_seed(1)
    trainer = Trainer(_model(config), tokens, settings)
    trainer.advance()
    (tmp_path / "saved").mkdir()
    trainer.save(tmp_path / "saved")
    expected = [trainer.advance() for _ in range(3)]
    torch.manual_seed(99)
    resumed = Trainer.restored(tmp_path / "saved", tokens, settings)
    assert [resumed.advance() for _ in range(3)] == expected


def test_only_the_newest_checkpoints_are_kept(trained):
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == [
        "step-00000008",
        "step-00000010",
    ]


@pytest.fixture
def two_checkpoints(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (1, 2):
        run.save(step, lambda directory: (directory / "weights").write_bytes(b"x" * 1000))
    return run


def test_a_damaged_checkpoint_is_passed_over(two_checkpoints):
    run = two_checkpoints
    newest = run.newest(pytest.fail)
    assert newest.name == "step-00000002"
    content = bytearray((newest / "weights").read_bytes())
    content[500] ^= 1
    (newest / "weights").write_bytes(content)
    said = []
    assert run.newest(said.append).name == "step-00000001"
    assert "does not match its checksum" in said[0]


@pytest.mark.parametrize("part", ["weights", "manifest.json"])
def test_an_incomplete_checkpoint_is_passed_over(two_checkpoints, part):
    (two_checkpoints.checkpoints / "step-00000002" / part).unlink()
    assert two_checkpoints.newest(lambda message: None).name == "step-00000001"


def test_a_checkpoint_whose_writing_was_cut_short_is_never_seen(two_checkpoints):
    def power_cut(directory: Path) -> None:
        (directory / "weights").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        two_checkpoints.save(3, power_cut)
    assert two_checkpoints.newest(pytest.fail).name == "step-00000002"
    two_checkpoints.save(3, lambda directory: (directory / "weights").write_bytes(b"whole"))
    assert two_checkpoints.newest(pytest.fail).name == "step-00000003"
    assert not list(two_checkpoints.checkpoints.glob(".*"))


def test_a_run_with_nothing_but_damage_starts_over(program, text, tmp_path, tiny):
    run = tmp_path / "run"
    assert program("train", "--run", run, "--data", text, "--steps", 4, *tiny).code == 0
    (run / "checkpoints" / "step-00000004" / "model.safetensors").write_bytes(b"")
    outcome = program("eval", run, "--length", 20)
    assert (outcome.code, outcome.err.count("\n")) == (2, 2)
    assert "no whole checkpoint" in outcome.err
    outcome = program("train", "--run", run, "--resume")
    assert outcome.code == 0
    assert "does not match its checksum" in outcome.err
    assert program("eval", run, "--length", 20).code == 0


def test_ctrl_c_saves_and_says_how_to_continue(text, tmp_path, tiny):
    run = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "megalodon_core",
        "train",
        "--run",
        run,
        "--data",
        text,
        "--steps",
        "100000",
    ]
    process = subprocess.Popen([str(word) for word in [*command, *tiny]], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(run.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    last = err.strip().splitlines()[-1]
    stopped = int(re.search(r"at step ([\d,]+)", last)[1].replace(",", ""))
    assert last.endswith(f"continue with: megalodon-core train --run {run} --resume")
    newest = RunDirectory(run).newest(pytest.fail)
    assert json.loads((newest / "training.json").read_text())["step"] == stopped
    assert "Traceback" not in err


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_names_resume_only_once_there_is_a_run(program, text, tmp_path, tiny, monkeypatch, begun):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt

    # Speed is measured before run.json is written; the first step comes after.
    monkeypatch.setattr(training_run, "new_model" if begun else "steps_per_second", interrupted)
    if begun:
        monkeypatch.setattr(training_run, "steps_per_second", lambda plan, corpus: 1.0)
    run = tmp_path / "run"
    outcome = program("train", "--run", run, "--data", text, "--steps", 2, *tiny)
    assert outcome.code == 130
    assert (run / "run.json").exists() == begun
    assert ("--resume" in outcome.err) == begun
    assert ("run the same command again" in outcome.err) != begun


def test_what_is_measured_when_a_run_begins_is_written_down(program, text, tmp_path, tiny, monkeypatch):
    speeds = {"float32": 200.0, "bfloat16": 300.0}
    monkeypatch.setattr(
        training_run, "steps_per_second", lambda plan, corpus: speeds[plan.training.precision]
    )
    run = tmp_path / "run"
    arguments = ["--data", text, "--minutes", 0.001, *tiny, "--precision", "auto"]
    outcome = program("train", "--run", run, *arguments)
    assert outcome.code == 0
    assert "float32 200.00, bfloat16 300.00" in outcome.err
    assert "18 steps should fit into 0.001 minutes" in outcome.err
    settings = json.loads((run / "run.json").read_text())["training"]
    assert (settings["steps"], settings["precision"]) == (18, "bfloat16")
    assert RunDirectory(run).newest(pytest.fail).name == "step-00000018"


def test_the_speed_of_training_is_measured(text, monkeypatch):
    monkeypatch.setattr(training_run, "_TRIAL_SECONDS", 0.0)
    source = data.DataSource((str(text),))
    settings = TrainSettings(steps=9, batch_size=2, segment_length=9, carry=3)
    plan = training_run.Plan(small_config(1, 16, 8, 256), settings, source, checkpoint_every=4)
    assert training_run.steps_per_second(plan, data.load(source)) > 0


def test_a_run_on_tokens_counts_bits_per_token(program, tmp_path, tiny):
    np.save(tmp_path / "t.npy", np.arange(3000) % 300)
    run = tmp_path / "run"
    outcome = program(
        "train", "--run", run, "--data", tmp_path / "t.npy", "--vocab-size", 300, "--steps", 2, *tiny
    )
    assert outcome.code == 0
    assert "bits per token" in outcome.out
    assert program("generate", run, "--prompt", "a").code == 2
    outcome = program("generate", run, "--prompt-tokens", 1, 2, "--max-new-tokens", 3)
    assert len(outcome.out.split()) == 3


def _model(config):
    return Megalodon(MegalodonConfig.from_dict(config))


def _trainer(tokens, settings):
    torch.manual_seed(0)
    return Trainer(_model(small_config(1, 16, 8, 256).to_dict()), tokens, settings)


def _remove(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()
