"""Products with Kronecker products of dense factors, against linear_operator and cola: one column and several."""

import math

import torch

import structmat as sm
from benchmarks.case import Case, Contender, Problem, Tensors, speed

__all__ = ["CASES"]

_SHAPES: tuple[tuple[tuple[int, ...], int], ...] = (((64, 64), 1), ((64, 64), 64), ((16, 16, 16), 16))


def _product(orders: tuple[int, ...], columns: int, package: str) -> Problem:
    """One product ``(A_1 kron ... kron A_L) X`` in float32, the operators made beforehand."""
    torch.manual_seed(5)
    factors = [torch.randn(n, n) / math.sqrt(n) for n in orders]
    x = torch.randn(math.prod(orders), columns)
    ours = sm.Kronecker(tuple(sm.Dense(f) for f in factors))
    peer = _peer(factors, package)

    def right() -> Tensors:
        """Axis by axis in float64."""
        z = x.double().reshape(*orders, columns)
        for axis, factor in enumerate(factors):
            z = torch.tensordot(factor.double(), z, ([1], [axis])).movedim(0, axis)
        return (z.reshape(-1, columns),)

    exact = right()
    # Each factor adds an inner product of n terms to the error, at most n eps of the product of the absolute values.
    size = math.prod(float(torch.linalg.matrix_norm(f.double())) for f in factors) * float(x.double().norm())
    limit = sum(orders) * torch.finfo(torch.float32).eps * size / float(exact[0].norm())
    contenders = {"ours": Contender(lambda: (ours @ x,)), "peer": Contender(lambda: (peer @ x,), package)}
    return Problem(contenders, ("y",), lambda: exact, (limit,))


def _peer(factors: list[torch.Tensor], package: str) -> object:
    if package == "cola":
        import cola

        return cola.ops.Kronecker(*[cola.ops.Dense(f) for f in factors])
    from linear_operator.operators import DenseLinearOperator, KroneckerProductLinearOperator

    return KroneckerProductLinearOperator(*[DenseLinearOperator(f) for f in factors])


def _case(orders: tuple[int, ...], columns: int, package: str) -> Case:
    shown, many = "x".join(map(str, orders)), f"{columns} column{'s' * (columns > 1)}"
    return Case(
        f"kronecker/{package} {shown} columns={columns}",
        f"Kronecker product of {len(orders)} dense factors times {many}, against {package}",
        lambda: _product(orders, columns, package),
        speed(must=1),
        peers=(package,),
    )


CASES: tuple[Case, ...] = tuple(
    _case(orders, columns, package) for orders, columns in _SHAPES for package in ("linear_operator", "cola")
)
