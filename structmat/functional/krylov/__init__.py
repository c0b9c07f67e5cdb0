"""Krylov methods on rows, many right-hand sides at once: each row has its own scalars and its own end.

Positive definite: ``conjugate_gradients``. Hermitian: ``minres``. Any square matrix: ``gmres``. Least squares:
``cgls`` and ``lsmr``. All take functions of rows, so any product serves; ``Matrix.solve`` chooses among them.
"""

from structmat.functional.krylov.common import Apply, Callback, Outcome
from structmat.functional.krylov.definite import conjugate_gradients
from structmat.functional.krylov.general import gmres
from structmat.functional.krylov.hermitian import minres
from structmat.functional.krylov.least_squares import cgls, lsmr

__all__ = ["Apply", "Callback", "Outcome", "cgls", "conjugate_gradients", "gmres", "lsmr", "minres"]
