"""Verbs of one matrix against numpy on the dense reference: determinants, traces, norms, spectra, pseudo-inverses,
bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

import structmat as sm
from structmat import backend
from structmat.testing.conformance import Case
from structmat.testing.examples import EXAMPLES
from tests.cases import build, over_examples, square

WIDE = (torch.float64, torch.complex128, torch.float32, torch.complex64)


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    return build(*request.param)


def _close(case: Case, got: torch.Tensor, wanted: Any, factor: float = 1.0) -> None:
    """Within 64 eps times the order times the size of the numbers, which is that of the matrix."""
    wanted = torch.as_tensor(numpy.array(wanted))
    assert tuple(got.shape) == tuple(wanted.shape)
    eps = torch.finfo(got.dtype).eps  # that of the default dtype for an identity without one
    n = max(case.sizes)
    size = case.size + (float(wanted.abs().max()) if wanted.numel() else 0.0)
    gap = float((got.to(torch.complex128) - wanted.to(torch.complex128)).abs().max()) if wanted.numel() else 0.0
    assert gap <= 64 * factor * eps * n * (1 + size)


def _smallest(dense: Any) -> float:
    return float(numpy.linalg.svd(dense)[1][..., -1].min())


@over_examples(dtypes=WIDE)
def test_entries_and_norms(case: Case) -> None:
    a, dense = case.matrix, case.dense.numpy()
    real = {torch.complex64: torch.float32, torch.complex128: torch.float64}
    _close(case, a.diagonal(), numpy.diagonal(dense, axis1=-2, axis2=-1))
    _close(case, a.norm(), numpy.linalg.norm(dense, axis=(-2, -1)))
    if a.dtype is not None:
        assert a.norm().dtype == real.get(a.dtype, a.dtype) and a.diagonal().dtype == a.dtype
    if case.sizes[0] == case.sizes[1]:
        _close(case, a.trace(), numpy.trace(dense, axis1=-2, axis2=-1))
    spectral = numpy.linalg.norm(dense, 2, axis=(-2, -1))
    bound = torch.as_tensor(numpy.asarray(a._norm_bound().detach().cpu(), dtype=float))
    slack = 1 + 64 * torch.finfo(case.dtype).eps * max(case.sizes)
    assert bool((bound * slack + 1e-300 >= torch.as_tensor(spectral)).all()), "the norm bound must bound the norm"
    assert a.rank_bound() >= int(numpy.linalg.matrix_rank(dense).max())
    assert a.numel_stored == sum(t.numel() for t in a.tensors())
    assert a.ndim == len(a.shape)


@over_examples(square, WIDE)
def test_determinants(case: Case) -> None:
    a, dense = case.matrix, case.dense.numpy()
    sign, logabs = a.slogdet()
    wanted_sign, wanted_log = numpy.linalg.slogdet(dense)
    assert sign.shape == logabs.shape == a.batch_shape and not logabs.is_complex()
    if _smallest(dense) < 1e-3:  # singular: sign 0 and -inf, or rounding
        assert bool((logabs < -10).all())
        return
    kappa = float(numpy.linalg.cond(dense).max())
    _close(case, sign, wanted_sign, kappa)
    _close(case, logabs, wanted_log, kappa)
    _close(case, a.det(), numpy.linalg.det(dense), kappa * (1 + float(numpy.abs(numpy.linalg.det(dense)).max())))
    assert torch.equal(a.logabsdet(), logabs)


def _matched(found: numpy.ndarray, wanted: numpy.ndarray) -> float:
    """The largest distance when each found number is paired, greedily, with the nearest wanted one."""
    left, worst = list(wanted), 0.0
    for value in found:
        k = int(numpy.argmin(numpy.abs(numpy.asarray(left) - value)))
        worst = max(worst, abs(left.pop(k) - value))
    return worst


@over_examples(square, (torch.float64, torch.complex128))
def test_eigenvalues(case: Case) -> None:
    """As sets. Eigenvalues of nonnormal matrices move by eps^(1/2), those of a Jordan block more: f = 0 is compared
    as given."""
    found = case.matrix.eigvals().detach().numpy().reshape(-1, case.sizes[1])
    if isinstance(case.matrix, sm.Circulant) and case.matrix.f == 0:
        corner = case.dense.numpy().reshape(-1, *case.sizes)[:, :1, 0]
        assert (found == corner).all()
        return
    wanted = numpy.linalg.eigvals(case.dense.numpy()).reshape(-1, case.sizes[1])
    far = isinstance(case.matrix, sm.Circulant) and abs(case.matrix.f) < 1e-8
    for f, w in zip(found, wanted, strict=True):
        assert _matched(f, w) <= (1e-2 if far else 1e-6) * (1 + case.size)


@pytest.mark.parametrize("f", [1, -1, 0.5, 0.6 + 0.8j])
def test_circulant_eigenvalues_are_in_fft_order(f: complex) -> None:
    """``lam_k`` belongs to the vector ``d^-j w^jk``: checked against the definition, one by one."""
    n = 6
    v = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lam = sm.Circulant(v, f).eigvals().numpy()
    root = (
        complex(f) ** (1 / n) if isinstance(f, complex) or f > 0 else abs(f) ** (1 / n) * numpy.exp(1j * numpy.pi / n)
    )
    for k in range(n):
        node = root * numpy.exp(-2j * numpy.pi * k / n)
        assert abs(lam[k] - sum(v[j].item() * node**j for j in range(n))) <= 64 * n * numpy.finfo(float).eps * float(
            v.abs().sum()
        )


@over_examples(dtypes=WIDE)
def test_singular_values_and_pseudo_inverses(case: Case) -> None:
    a, dense = case.matrix, case.dense.numpy()
    if isinstance(a, sm.Circulant) and abs(a.f) < 1e-8:
        dense = a.to_dense().to(torch.complex128).numpy()
    values = a.svdvals()
    wanted = numpy.linalg.svd(dense, compute_uv=False)
    _close(case, values, wanted)
    assert bool((values[..., :-1] >= values[..., 1:]).all()), "descending"
    eps = torch.finfo(case.dtype).eps
    clear = wanted > 1e-3 * wanted.max(initial=1.0)
    if not bool((clear | (wanted < 8 * max(case.sizes) * eps * wanted.max(initial=1.0))).all()):
        return  # neither zero nor clearly not: the pseudo-inverse is a matter of opinion
    inverse = a.pinv()
    assert isinstance(inverse, sm.Matrix)
    smallest = float(wanted[clear].min()) if clear.any() else 1.0
    expected = numpy.linalg.pinv(dense, rcond=1e-4 if eps > 1e-10 else 1e-10)
    _close(case, inverse.to_dense(), expected, 1 + 1 / smallest**2)


def test_large_orders_use_the_structured_form() -> None:
    """Above the dense limit circulants, low-rank matrices and reflections still know their spectra."""
    n = 500
    g = torch.Generator().manual_seed(0)
    v = torch.randn(n, generator=g, dtype=torch.float64)
    circulant = sm.Circulant(v)
    dense = torch.linalg.svdvals(circulant.to_dense())
    assert float((circulant.svdvals() - dense).abs().max()) <= 1e-12 * n
    low = sm.LowRank(
        torch.randn(n, 3, generator=g, dtype=torch.float64), torch.randn(n, 3, generator=g, dtype=torch.float64)
    )
    assert float((low.svdvals()[:3] - torch.linalg.svdvals(low.to_dense())[:3]).abs().max()) <= 1e-12 * n
    assert not low.svdvals()[3:].any()
    q = sm.HouseholderProduct(torch.randn(4, n, generator=g, dtype=torch.float64))
    lam = q.eigvals()
    assert float((lam.abs() - 1).abs().max()) <= 1e-12 and int(((lam - 1).abs() < 1e-9).sum()) == n - 4
    assert float(lam.sum().real - q.trace()) == pytest.approx(0, abs=1e-10)


def test_determinants_beyond_the_range_of_doubles() -> None:
    """log|det| does not overflow where the determinant does."""
    d = sm.Diagonal(torch.full((400,), 1e10, dtype=torch.float64))
    assert float(d.logabsdet()) == pytest.approx(400 * numpy.log(1e10), rel=1e-14)
    assert float(
        sm.Circulant(torch.cat((torch.tensor([1e10]), torch.zeros(399))).double()).logabsdet()
    ) == pytest.approx(400 * numpy.log(1e10), rel=1e-12)


def test_low_rank_determinants_are_exactly_zero() -> None:
    a = sm.LowRank(torch.ones(4, 2), torch.ones(4, 2))
    assert a.det() == 0 and a.slogdet()[1] == -torch.inf


def test_signs_of_real_circulants_are_exact() -> None:
    """+-1, never a rounded phase, for every n and both f."""
    for n in range(1, 12):
        for f in (1, -1):
            v = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
            sign, _ = sm.Circulant(v, f).slogdet()
            assert float(sign) in (-1.0, 1.0) and float(sign) == float(
                torch.linalg.slogdet(sm.Circulant(v, f).to_dense())[0]
            )


RANDOM: dict[str, Callable[..., sm.Matrix]] = {
    "Dense": lambda **o: sm.Dense.random(4, 3, **o),
    "Diagonal": lambda **o: sm.Diagonal.random(4, **o),
    "Circulant": lambda **o: sm.Circulant.random(4, -1, **o),
    "Toeplitz": lambda **o: sm.Toeplitz.random(4, 3, **o),
    "SymmetricToeplitz": lambda **o: sm.SymmetricToeplitz.random(4, **o),
    "LowRank": lambda **o: sm.LowRank.random(4, 3, 2, **o),
    "HouseholderProduct": lambda **o: sm.HouseholderProduct.random(4, 2, **o),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_repeats_with_a_generator_and_takes_a_dtype(name: str) -> None:
    make = lambda **o: RANDOM[name](generator=torch.Generator().manual_seed(5), **o)  # noqa: E731
    assert type(make()).__name__ == name
    assert torch.equal(make().to_dense(), make().to_dense())
    assert make(dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize(
    "kind",
    [
        sm.Dense,
        sm.Diagonal,
        sm.Circulant,
        sm.OrthogonalCirculant,
        sm.Toeplitz,
        sm.SymmetricToeplitz,
        sm.HermitianToeplitz,
        sm.HouseholderProduct,
    ],
)
def test_identity_of_each_type(kind: Any) -> None:
    a = kind.identity(4, dtype=torch.float64)
    assert type(a) is kind and torch.equal(a.to_dense(), torch.eye(4, dtype=torch.float64))
    if kind is sm.HouseholderProduct:
        paired = kind.identity(4, 2, dtype=torch.float64)
        assert float((paired.to_dense() - torch.eye(4)).abs().max()) <= 16 * torch.finfo(torch.float64).eps


def _way_back(a: Any) -> dict[str, Any] | None:
    """What ``from_dense`` has to be told besides the entries; None where they do not tell enough."""
    if isinstance(a, sm.HouseholderProduct) or (isinstance(a, sm.Circulant) and a.dtype != torch.float64):
        return None  # a complex f makes the dense matrix complex, and the column with it
    if isinstance(a, (sm.Circulant, sm.OrthogonalCirculant)):
        return {"f": a.f}
    if isinstance(a, (sm.BlockCirculant, sm.CosineDiagonal)):
        return {"sizes": a._row_sizes(), "tol": 1e-14}  # cosine transforms round
    if isinstance(a, sm.BlockToeplitz):
        return {"columns": a.columns, "rows": a._row_sizes()}
    if isinstance(a, sm.BlockDiagonal):
        return {"count": a.blocks.shape[-3]}
    if isinstance(a, sm.Triangular):
        return {"upper": a.upper}
    if isinstance(a, sm.Kronecker):
        return {"shapes": [tuple(f.shape) for f in a.factors], "tol": 1e-14}  # by way of an SVD
    if isinstance(a, sm.CauchyLike):
        return {"row_nodes": a.row_nodes, "column_nodes": a.column_nodes}
    if isinstance(a, sm.Vandermonde):
        return None if a.transposed or a.columns < 2 else {}
    if isinstance(a, sm.Butterfly):  # one factor a digit is what the peel finds; test_butterfly.py has the others
        axes = [where[0] for where in a.axes if len(where) == 1]
        if sorted(axes) != list(range(len(a.digits))) or len(a.axes) != len(axes) or a.order or a.tail:
            return None
        return {"digits": a.digits, "rows": a.output_digits, "sequence": tuple(axes), "tol": 1e-14}
    return {}


@pytest.mark.parametrize("example", [e for e in EXAMPLES if hasattr(e.type, "from_dense")], ids=lambda e: e.name)
def test_from_dense_gives_the_matrix_back(example: Any) -> None:
    a = example.build()
    options = _way_back(a)
    if options is None:
        assert type(a) in (sm.HouseholderProduct, sm.Circulant, sm.Butterfly, sm.Vandermonde)
        return
    dense = a.to_dense()
    gap = float((example.type.from_dense(dense, **options).to_dense() - dense).norm())
    assert gap <= 16 * max(dense.shape[-2:]) * torch.finfo(torch.float64).eps * (1 + float(dense.norm()))


def test_repr_shows_what_matters() -> None:
    assert repr(sm.Circulant(torch.ones(3), -1)) == "Circulant(shape=(3, 3), f=-1, dtype=float32)"
    assert repr(sm.Identity(3)) == "Identity(shape=(3, 3), dtype=None)"
    shown = repr(sm.Product((sm.Identity(3), sm.Circulant(torch.ones(3)))))
    assert shown.splitlines() == [
        "Product(",
        "  Identity(shape=(3, 3), dtype=None)",
        "  Circulant(shape=(3, 3), dtype=float32)",
        ")",
    ]
    assert "meta" in repr(sm.Diagonal(torch.ones(2, device="meta")))


def test_allclose_and_devices() -> None:
    a = sm.Circulant(torch.ones(3, dtype=torch.float64))
    assert sm.allclose(a, a.to_dense()) and not sm.allclose(a, 1.1 * a)
    assert sm.allclose(a.float(), a.float().to_dense())
    meta = a.to("meta")
    assert meta.device.type == "meta" and meta.linear(torch.ones(2, 3, dtype=torch.float64, device="meta")).shape == (
        2,
        3,
    )
    assert (
        a.to(torch.complex128).dtype == torch.complex128
        and a.double().dtype == torch.float64
        and a.float().dtype == torch.float32
    )
    assert backend.dense_limit("meta") == 256
