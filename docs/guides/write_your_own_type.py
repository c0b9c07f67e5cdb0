"""A matrix type of your own, the conformance suite on it, and a planted bug that is found and shrunk.

Run: python docs/guides/write_your_own_type.py
"""

from __future__ import annotations

# begin-type
from typing import ClassVar

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import structmat as sm
from structmat.testing import assert_matches_dense, check_matrix_type, strategies


def hadamard_rows(x: torch.Tensor) -> torch.Tensor:
    """``x H`` for rows x, H the Hadamard matrix of order n = 2^k: k passes of sums and differences."""
    n = x.shape[-1]
    y = x.reshape((*x.shape[:-1], *[2] * (n.bit_length() - 1)))
    for axis in range(x.ndim - 1, y.ndim):
        a, b = y.unbind(axis)
        y = torch.stack((a + b, a - b), axis)
    return y.reshape(x.shape)


class HadamardDiagonal(sm.Matrix):
    """``A = H diag(weights) H / n``: n numbers, n log n operations a product."""

    weights: torch.Tensor
    core: ClassVar = {"weights": 1}  # how many trailing dimensions of a field are not batch

    @property
    def shape(self):
        return torch.Size((*self.weights.shape, self.weights.shape[-1]))

    def linear(self, x):
        w = self.weights if x.ndim == 1 or self.weights.ndim == 1 else self.weights[..., None, :]
        return hadamard_rows(hadamard_rows(x) * w) / w.shape[-1]

    def transpose(self):
        return self  # H and diag(weights) are symmetric


# end-type
# begin-suite
def dense(a: HadamardDiagonal) -> torch.Tensor:
    """What the type means, written a second time, slowly."""
    h = sm.hadamard(a.weights.shape[-1]).to_dense().to(a.weights.dtype)
    return h @ torch.diag_embed(a.weights) @ h / len(h)


def examples(kind: type[sm.Matrix]) -> list[tuple[sm.Matrix, torch.Tensor]]:
    """Order 1, order 8, a batch, complex entries."""
    g = torch.Generator().manual_seed(0)
    real = [kind(1 + torch.rand(shape, generator=g, dtype=torch.float64)) for shape in ((1,), (8,), (2, 4))]
    complex_ = [kind(torch.randn(4, generator=g, dtype=torch.complex128))]
    return [(a, dense(a)) for a in real + complex_]


# end-suite
# begin-bug
class Forgetful(HadamardDiagonal):
    """The same with a bug: the stride of the last pass is wrong, so that two outputs change places."""

    def linear(self, x):
        y = super().linear(x)
        if y.shape[-1] < 4:
            return y
        head, p, q = y.split((y.shape[-1] - 2, 1, 1), -1)
        return torch.cat((head, q, p), -1)


def draw(kind: type[sm.Matrix]) -> st.SearchStrategy[sm.Matrix]:
    """A strategy of the type: the order, a batch, and tensors of all kinds of numbers."""
    shapes = st.tuples(st.sampled_from([(), (2,)]), st.sampled_from([1, 2, 4, 8, 16]))
    return shapes.flatmap(lambda drawn: st.builds(kind, strategies.tensors((*drawn[0], drawn[1]))))


@settings(max_examples=200, deadline=None, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink])
@given(A=draw(Forgetful))
def products_agree(A: sm.Matrix) -> None:
    """The property: products and entries are those of the dense matrix."""
    assert_matches_dense(A, dense(A))


# end-bug
def main() -> None:
    """The suite passes the good type, stops at the bug, and hypothesis shrinks it."""
    check_matrix_type(HadamardDiagonal, examples(HadamardDiagonal))
    print("HadamardDiagonal: check_matrix_type found nothing")
    for name, run in (
        ("check_matrix_type", lambda: check_matrix_type(Forgetful, examples(Forgetful))),
        ("hypothesis", products_agree),
    ):
        try:
            run()
        except AssertionError as error:
            print(f"\n{name}:\n{error}")
            print("\n".join(getattr(error, "__notes__", [])), end="")
        else:
            raise SystemExit(f"error: {name} did not find the planted bug")


if __name__ == "__main__":
    main()
