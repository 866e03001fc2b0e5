"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) in Python integers."""

from __future__ import annotations

_WORD = 0xFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four random words of a four-word counter under a two-word key: ten rounds, the key bumped between."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ k0, b & _WORD, a >> 32 ^ c3 ^ k1, a & _WORD
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return c0, c1, c2, c3


def dropped(seed: int, dropout_p: float, row: int, head: int, t: int, s: int) -> bool:
    """Whether DropKey hides key s from query t: word 0 at counter (s, t, head, row) is below p 2^32."""
    counter = (s & _WORD, t & _WORD, head & _WORD, row & _WORD)
    return philox4x32(counter, (seed & _WORD, seed >> 32))[0] < int(dropout_p * 2**32)
