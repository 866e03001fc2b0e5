"""Help, exit codes, and mistakes answered in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

COMMANDS = ("train", "eval", "generate", "bench", "info", "demo")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(program, command):
    outcome = program(command, "--help")
    assert outcome.code == 0
    assert f"usage: megalodon-core {command}" in outcome.out
    assert outcome.err == ""


def test_the_program_lists_its_commands(program):
    outcome = program("--help")
    assert outcome.code == 0
    assert all(f"\n    {command} " in outcome.out for command in COMMANDS)


def test_python_dash_m_is_the_same_program():
    result = subprocess.run(
        [sys.executable, "-m", "megalodon_core", "--version"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("megalodon-core ")


@pytest.fixture
def files(tmp_path, text, trained):
    """Names that the mistakes below are made of."""
    (tmp_path / "empty.txt").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "unknown.json").write_text('{"layers": 3}')
    (tmp_path / "bad.npy").write_bytes(b"not numpy")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    names = ("empty.txt", "empty", "bad.json", "unknown.json", "bad.npy", "odd.bin", "missing", "new")
    return {name.replace(".", "_"): str(tmp_path / name) for name in names} | {
        "text": str(text),
        "trained": str(trained),
    }


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("", "COMMAND"),
        ("fly", "invalid choice: 'fly'"),
        ("train", "--run"),
        ("train --run {new} --steps 0", "--steps: expected a whole number of at least 1, got '0'"),
        ("train --run {new} --steps many", "got 'many'"),
        ("train --run {new} --minutes nan", "--minutes: expected a positive number, got 'nan'"),
        ("train --run {new} --learning-rate -1", "--learning-rate: expected a positive number"),
        ("train --run {new} --steps 1 --minutes 1", "not allowed with"),
        ("train --run {new} --data {missing}", "no such file or directory"),
        ("train --run {new} --data {empty_txt}", "the file is empty"),
        ("train --run {new} --data {empty}", "no file in this directory"),
        ("train --run {new} --data {bad_npy}", "--vocab-size"),
        ("train --run {new} --data {bad_npy} --vocab-size 9", "not a readable token file"),
        ("train --run {new} --data {odd_bin} --vocab-size 9", "not a readable token file"),
        ("train --run {new} --data {text} {odd_bin}", "cannot be mixed"),
        ("train --run {new} --data {text} --steps 1 --carry 10000", "the training text has"),
        ("train --run {new} --data {text} --steps 1 --config {missing}", "No such file"),
        ("train --run {new} --data {text} --steps 1 --config {bad_json}", "not JSON"),
        ("train --run {new} --data {text} --steps 1 --config {unknown_json}", "layers"),
        ("train --run {new} --data {text} --steps 1 --preset huge", "'huge'"),
        ("train --run {new} --data {text} --steps 1 --dim 1", "model_dim"),
        ("train --run {new} --resume", "holds no run to resume"),
        (
            "train --run {trained} --resume --steps 9 --data {text}",
            "--steps, --data would be ignored beside --resume",
        ),
        ("train --run {new} --steps 1 --held-out {text}", "--held-out needs --data"),
        ("train --run {new} --steps 1 --vocab-size 9", "--vocab-size needs --data"),
        (
            "train --run {new} --data {text} --vocab-size 9",
            "--vocab-size is for .npy and .bin files, and --data",
        ),
        (
            "train --run {new} --data {bad_npy} --vocab-size 9 --token-dtype uint32",
            "--token-dtype is for .bin files",
        ),
        ("train --run {new} --config {unknown_json} --dim 8", "--dim would be ignored beside --config"),
        (
            "train --run {new} --config {unknown_json} --preset huge",
            "--preset would be ignored beside --config",
        ),
        (
            "train --run {new} --steps 1 --preset mega200M --layers 4",
            "--layers would be ignored beside --preset",
        ),
        ("train --run {trained} --data {text} --steps 1", "already holds a run"),
        ("eval {missing}", "neither a run"),
        ("eval {trained} --length 100000", "too short"),
        ("eval {trained} --length 0", "--length"),
        ("eval {trained} --token-dtype uint16", "--token-dtype needs --data"),
        ("eval {trained} --data {text} --vocab-size 256", "--vocab-size is for .npy and .bin files"),
        ("eval {trained} --data {missing}", "no such file"),
        ("eval {trained} --length 9 --json {missing}/x.json", "directory does not exist"),
        ("generate {trained}", "--prompt"),
        ("generate {trained} --prompt=", "the prompt is empty"),
        ("generate {trained} --prompt-file {missing}", "No such file"),
        ("generate {trained} --prompt-tokens 5 256", "vocabulary is 256"),
        ("generate {trained} --prompt a --temperature -1", "--temperature: expected a number of at least 0"),
        ("generate {trained} --prompt a --top-p 0", "--top-p: expected a number above 0"),
        ("bench --threads 1025", "--threads: expected a whole number from 1 to 1024, got '1025'"),
        ("bench --quick --operators silu_mul --json {missing}/x.json", "directory does not exist"),
        ("bench --operators convolution", "no such operator"),
        ("demo --length 0", "--length"),
        ("demo --output {new} --length 1000000000", "too short"),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(program, files, arguments, complaint):
    outcome = program(*[word.format(**files) for word in arguments.split()])
    assert outcome.code == 2
    assert outcome.out == ""
    assert complaint in outcome.err
    assert outcome.err.startswith("megalodon-core")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("command", ["info", "bench --quick --operators silu_mul"])
def test_an_unknown_instruction_set_gets_one_line(command):
    result = subprocess.run(
        [sys.executable, "-m", "megalodon_core", *command.split()],
        env={**os.environ, "MEGALODON_CORE_ISA": "avx1024"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    assert "MEGALODON_CORE_ISA" in result.stderr
    assert "'avx1024'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_resuming_takes_only_the_options_that_it_heeds(program, trained):
    resume = ("train", "--run", trained, "--resume", "--threads", torch.get_num_threads())
    assert program(*resume).code == 0
    options = set(re.findall(r"--[a-z-]+", program("train", "--help").out))
    words = {"--precision": "auto", "--token-dtype": "uint16"}
    for option in options - {"--help", "--run", "--resume", "--threads"}:
        outcome = program(*resume, option, words.get(option, "1"))
        assert outcome.code == 2
        assert f"error: {option} would be ignored beside --resume" in outcome.err


def test_no_run_is_left_behind_by_a_mistake(program, text, tmp_path):
    assert program("train", "--run", tmp_path / "run", "--data", text, "--carry", 10000).code == 2
    assert not (tmp_path / "run").exists()
