"""Corpora: which files are held out, what a stream contains, and token files."""

from __future__ import annotations

import numpy as np
import pytest
from megalodon_core.errors import UserError
from megalodon_core.training import data


def load(*paths, **settings):
    return data.load(data.DataSource(tuple(map(str, paths)), **settings))


@pytest.fixture(scope="module")
def library():
    return data.standard_library()


def test_the_standard_library_holds_out_a_million_bytes(library):
    total = len(library.train) + len(library.held_out)
    assert len(library.held_out) > 1_000_000
    assert 0.08 < len(library.held_out) / total < 0.3
    assert (library.unit, library.vocab_size) == ("byte", 256)


def test_the_standard_library_is_read_the_same_twice(library):
    again = data.standard_library()
    np.testing.assert_array_equal(again.train, library.train)
    np.testing.assert_array_equal(again.held_out, library.held_out)


def test_installed_packages_are_not_the_standard_library(tmp_path):
    names = [f"m{n}.py" for n in range(40)]
    (tmp_path / "site-packages").mkdir()
    for name in names:
        (tmp_path / name).write_text(name)
        (tmp_path / "site-packages" / name).write_text("installed")
    corpus = data.standard_library(tmp_path)
    everything = bytes(corpus.train) + bytes(corpus.held_out)
    assert b"installed" not in everything
    assert sorted(everything.rstrip(b"\0").split(b"\0")) == sorted(name.encode() for name in names)


def test_a_python_without_sources_is_an_error(tmp_path):
    with pytest.raises(UserError, match="too few sources"):
        data.standard_library(tmp_path)


def test_the_side_of_a_file_depends_on_its_path_alone():
    held_out = [n for n in range(24) if data.is_held_out(f"package/module{n}.py")]
    assert held_out == [5, 8, 15, 19]


def test_a_directory_is_split_by_path(tmp_path):
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "x").write_text("secret")
    for n in range(30):
        (tmp_path / f"{n}.txt").write_text(f"<{n}>")
    corpus = load(tmp_path)
    held_out = [f"<{n}>" for n in range(30) if data.is_held_out(f"{n}.txt")]
    assert sorted(bytes(corpus.held_out).decode().rstrip("\0").split("\0")) == sorted(held_out)
    assert b"secret" not in bytes(corpus.train)
    (tmp_path / "another.txt").write_text("more")
    assert set(bytes(load(tmp_path).held_out).split(b"\0")) >= set(bytes(corpus.held_out).split(b"\0"))


def test_of_a_single_file_the_last_sixth_is_held_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(1, 60)))
    corpus = load(tmp_path / "a.txt")
    assert bytes(corpus.train) == bytes(range(1, 51))
    assert bytes(corpus.held_out) == bytes([*range(51, 60), data.DOCUMENT_END])


def test_held_out_files_can_be_named(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 5)
    corpus = load(tmp_path / "a", held_out=(str(tmp_path / "b"),))
    assert (bytes(corpus.train), bytes(corpus.held_out)) == (b"aaaaa\0", b"bbbbb\0")


def test_whole_reads_every_file_into_the_stream(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 2)
    corpus = data.whole(data.DataSource((str(tmp_path / "b"), str(tmp_path / "a"))))
    assert bytes(corpus.held_out) == b"bb\0aa\0"


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_raw_token_files(tmp_path, dtype):
    tokens = np.arange(600) * 50
    tokens.astype(np.dtype(dtype).newbyteorder("<")).tofile(tmp_path / "t.bin")
    corpus = load(tmp_path / "t.bin", vocab_size=30_000, token_dtype=dtype)
    np.testing.assert_array_equal(np.concatenate([corpus.train, corpus.held_out]), tokens)
    assert (corpus.unit, corpus.vocab_size, len(corpus.held_out)) == ("token", 30_000, 100)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_numpy_token_files(tmp_path, dtype):
    np.save(tmp_path / "t.npy", np.arange(60, dtype=dtype))
    corpus = load(tmp_path / "t.npy", vocab_size=60)
    np.testing.assert_array_equal(corpus.train, np.arange(50))


@pytest.mark.parametrize(
    ("array", "complaint"),
    [
        (np.zeros((2, 3), np.int64), "one-dimensional integer"),
        (np.zeros(9), "one-dimensional integer"),
        (np.zeros(0, np.int64), "holds no token"),
        (np.array([1, -1]), "token -1 is outside"),
        (np.array([1, 7]), "token 7 is outside the vocabulary of 7"),
        (np.array([None]), "not a readable token file"),
    ],
)
def test_a_malformed_token_file_is_an_error(tmp_path, array, complaint):
    np.save(tmp_path / "t.npy", array)
    with pytest.raises(UserError, match=complaint):
        load(tmp_path / "t.npy", vocab_size=7)


def test_a_held_out_stream_that_is_too_short_is_an_error(text):
    corpus = load(text)
    assert len(data.held_out_stream(corpus, 999)) == 1000
    with pytest.raises(UserError, match=r"1,000 bytes is too short to predict 1,000"):
        data.held_out_stream(corpus, 1000)
