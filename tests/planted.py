"""A small type without a fault, its examples, and the way a planted fault is entered: for the tests of conformance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

from structmat import Matrix
from structmat.testing import check_matrix_type

F64 = torch.float64


class Plain(Matrix):
    """A dense matrix written as a user writes a type: nothing is wrong with it."""

    core: ClassVar[Mapping[str, int]] = {"entries": 2}
    entries: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        return self.entries.shape

    def linear(self, x: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(x.dtype, self.entries.dtype)
        return torch.matmul(
            x[..., None, :].to(wide),
            self.entries.mT.to(wide)[..., None, :, :] if x.ndim > 1 else self.entries.mT.to(wide),
        )[..., 0, :]

    def transpose(self) -> Matrix:
        return type(self)(self.entries.mT)


def pairs(kind: type[Any]) -> list[tuple[Matrix, torch.Tensor]]:
    """Square, wide, complex with a batch; well conditioned where square."""
    g = torch.Generator().manual_seed(5)
    found = []
    for shape, dtype in (((3, 3), F64), ((2, 4), F64), ((2, 3, 3), torch.complex128)):
        entries = torch.randn(*shape, generator=g, dtype=dtype) + 2 * torch.eye(*shape[-2:], dtype=dtype)
        found.append((kind(entries), entries.clone()))
    return found


def fault(faults: list[Any], message: str) -> Any:
    """Enter a faulty type with the message it must be found by."""

    def enter(kind: type[Matrix]) -> type[Matrix]:
        faults.append(pytest.param(kind, message, id=kind.__name__))
        return kind

    return enter


good = Plain.linear


def found(kind: type[Matrix], message: str) -> None:
    """The suite finds the fault, in one line that names it."""
    with pytest.raises(AssertionError, match=message) as caught:
        check_matrix_type(kind, pairs(kind))
    text = str(caught.value)
    assert text.startswith(f"check_matrix_type({kind.__name__}), example ") and "\n" not in text
