"""Random words by counter: the one source of chance in the data plane.

A word is a pure function of (seed, purpose, counter), so order and augmentation need no generator
to be carried, saved or handed to a worker. Raw Philox-4x64 output is fixed by its publication;
NumPy promises as much for its bit generators, and does not for `Generator`'s methods, which is why
none of those is used here.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

_WORD = 2**64


class Purpose(IntEnum):
    """What the words are for; part of the key, so that no two purposes share words. Never renumber."""

    SHARDS = 1
    BLOCK = 2
    AUGMENT = 3


def raw_words(seed: int, purpose: Purpose, counter: tuple[int, int, int], count: int) -> NDArray[np.uint64]:
    """`count` uniform 64-bit words that depend on nothing but the arguments."""
    key = np.array([seed % _WORD, int(purpose)], np.uint64)
    # The first counter word is Philox's own: it counts the words drawn.
    start = np.array([0, *(word % _WORD for word in counter)], np.uint64)
    return np.random.Philox(key=key, counter=start).random_raw(count)


def permutation(seed: int, purpose: Purpose, counter: tuple[int, int, int], length: int) -> NDArray[np.int64]:
    """A random permutation of 0..length-1: the order of raw keys, equal keys by index."""
    words = raw_words(seed, purpose, counter, length)
    order = np.argsort(words)  # two to four times as fast as a stable sort, and the same but for equal keys
    ordered = words[order]
    if np.any(ordered[1:] == ordered[:-1]):
        order = np.argsort(words, kind="stable")
    return order.astype(np.int64, copy=False)


def uniforms(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Words as numbers in [0, 1), from their upper 53 bits."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
