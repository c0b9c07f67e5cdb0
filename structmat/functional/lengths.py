"""Lengths at which transforms are fast."""

import torch

__all__ = ["good_length", "is_smooth"]

_good: dict[int, int] = {}
_smooth: dict[int, bool] = {}


def good_length(n: int) -> int:
    """The smallest even number >= n with no prime factor above 7 (1 for n <= 1): a fast length for real transforms."""
    if n <= 1:
        return 1
    if torch.compiler.is_compiling():
        return _good_length(n)
    if n not in _good:
        _good[n] = _good_length(n)
    return _good[n]


def _good_length(n: int) -> int:
    best = 2
    while best < n:
        best *= 2
    sevens = 2
    while sevens < best:
        fives = sevens
        while fives < best:
            threes = fives
            while threes < best:
                twos = threes
                while twos < n:
                    twos *= 2
                best = min(best, twos)
                threes *= 3
            fives *= 5
        sevens *= 7
    return best


def is_smooth(n: int) -> bool:
    """Whether n has no prime factor above 13, so that a transform of length n itself is fast."""
    if torch.compiler.is_compiling():
        return _is_smooth(n)
    if n not in _smooth:
        _smooth[n] = _is_smooth(n)
    return _smooth[n]


def _is_smooth(n: int) -> bool:
    for p in (2, 3, 5, 7, 11, 13):
        while n % p == 0 and n > 1:
            n //= p
    return n <= 1
