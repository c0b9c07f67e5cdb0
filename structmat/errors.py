"""The exceptions of structmat. Each derives from the built-in class a caller would already catch.

An illegal *parameter* (a rank of zero, an unknown kind) is a plain ``ValueError`` that names the legal values.
"""

import numpy.linalg
import torch

__all__ = [
    "AmbiguousRuleError",
    "BackendError",
    "CheckpointError",
    "DeviceError",
    "DtypeError",
    "NotStructuredError",
    "ShapeError",
    "SolveError",
    "StructureError",
]


class ShapeError(ValueError):
    """Sizes do not fit; the message carries both objects and both sizes."""


class DtypeError(TypeError):
    """A dtype is not supported, or two operands differ in precision."""


class DeviceError(RuntimeError):
    """Two operands live on different devices."""


class StructureError(TypeError):
    """No structured form exists for what was asked; the message names the way out."""


class NotStructuredError(StructureError, ValueError):
    """Raised by ``from_dense`` when the entries are not of the type; carries the measured ``distance``."""

    def __init__(self, message: str, distance: float = float("nan")) -> None:
        super().__init__(message)
        self.distance = distance


class AmbiguousRuleError(TypeError):
    """Two rules fit a pair of types equally well."""


class BackendError(RuntimeError):
    """An implementation was demanded that cannot serve this call."""


class SolveError(torch.linalg.LinAlgError, numpy.linalg.LinAlgError):  # type: ignore[misc, name-defined]
    """A linear system could not be solved to the accuracy asked for; carries the ``backward_error`` reached."""

    def __init__(self, message: str, backward_error: float = float("nan")) -> None:
        super().__init__(message)
        self.backward_error = backward_error


class CheckpointError(ValueError):
    """A checkpoint is damaged, of another version, or does not fit the model."""
