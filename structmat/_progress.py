"""A progress bar for iterative solves: the logarithm of the backward error, on its way to the target."""

import math
from typing import Any

from structmat._optional import need

__all__ = ["ProgressBar"]


class ProgressBar:
    """A ``callback(step, eta)`` that shows, by tqdm, how many of the digits asked for are there.

    The bar is full at backward error ``tol``; a solve that starts anew at step 1 starts a new bar. Use it as a context
    manager, or call ``close()``, to leave the last line on the screen.
    """

    def __init__(self, description: str, tol: float, **options: Any) -> None:
        self._make = need("tqdm.auto", "progress").tqdm
        self._options = {"desc": description, "unit": "digit", "bar_format": _FORMAT, **options}
        self._digits = max(1.0, -math.log10(tol))
        self._bar: Any = None
        self._last = 0

    def __call__(self, step: int, eta: float) -> None:
        if self._bar is None or step <= self._last:
            self.close()
            self._bar = self._make(total=round(self._digits, 1), **self._options)
        reached = 0.0 if not eta > 0 or math.isinf(eta) else min(self._digits, max(0.0, -math.log10(eta)))
        self._bar.n = round(self._digits if eta == 0 else reached, 1)
        self._bar.set_postfix_str(f"step {step}, backward error {eta:.1e}")
        self._last = step

    def close(self) -> None:
        """End the bar, if there is one."""
        if self._bar is not None:
            self._bar.close()
        self._bar, self._last = None, 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


_FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} digits, {elapsed}{postfix}"
