"""Kernels and boundaries: the matrices of convolutions against scipy.ndimage, batches, gradients in the kernel."""

from __future__ import annotations

import itertools

import numpy
import pytest
import scipy.ndimage
import torch

import structmat as sm
from structmat.testing import assert_gradients

F64, C128 = torch.float64, torch.complex128
EPS = torch.finfo(F64).eps


def _numbers(*shape: int, dtype: torch.dtype = F64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _near(a: torch.Tensor, b: torch.Tensor, factor: float = 100.0) -> None:
    """Numbers of the size of b, through a few dozen operations each."""
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= factor * EPS * (1 + float(b.abs().max()))


def _even(kernel: torch.Tensor, levels: int) -> torch.Tensor:
    for axis in range(-levels, 0):
        kernel = (kernel + kernel.flip(axis)) / 2
    return kernel


MODES = {"zero": "constant", "periodic": "wrap", "reflect": "reflect"}


@pytest.mark.parametrize("boundary", MODES)
@pytest.mark.parametrize("shape", [(5,), (1,), (4, 6), (1, 4), (2, 3, 4)])
def test_kernels_are_scipys(boundary: str, shape: tuple[int, ...]) -> None:
    """Odd and even kernels, some larger than the image, real and complex."""
    for ends in itertools.islice(
        itertools.product((3, 2, 11, 1), repeat=len(shape)), 0, None, 1 + 4 * (len(shape) > 2)
    ):
        for dtype in (F64, C128):
            kernel, image = _numbers(*ends, dtype=dtype), _numbers(*shape, dtype=dtype, seed=1)
            matrix = sm.BlockToeplitz.from_kernel(kernel, shape, boundary)
            wanted = torch.from_numpy(scipy.ndimage.convolve(image.numpy(), kernel.numpy(), mode=MODES[boundary]))
            size = 16 * EPS * float(kernel.abs().sum()) * float(image.norm()) * 2 ** len(shape)
            assert float((matrix.apply(image) - wanted).norm()) <= size
            assert float((matrix.to_dense() @ image.flatten() - wanted.flatten()).norm()) <= size
            _near(matrix.diagonal(), matrix.to_dense().diagonal())


@pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 4)])
def test_even_kernels_with_reflection_are_closed(shape: tuple[int, ...]) -> None:
    for ends in ((3,) * len(shape), (1, 7, 3)[: len(shape)]):
        kernel, image = _even(_numbers(*ends), len(shape)), _numbers(2, *shape, seed=1)
        matrix = sm.BlockToeplitz.from_kernel(kernel, shape, "reflect", symmetric=True)
        assert type(matrix) is sm.CosineDiagonal
        wanted = [scipy.ndimage.convolve(v.numpy(), kernel.numpy(), mode="reflect") for v in image]
        size = 64 * EPS * float(kernel.abs().sum()) * float(image.norm())
        assert float((matrix.apply(image) - torch.from_numpy(numpy.stack(wanted))).norm()) <= size
        general = sm.BlockToeplitz.from_kernel(kernel, shape, "reflect")
        _near(general.even_part().to_dense(), matrix.to_dense())
        _near(general.gram_approximation().to_dense(), (matrix @ matrix).to_dense())


def test_types_of_the_boundaries_and_their_defaults() -> None:
    kernel = _even(_numbers(3, 3), 2)
    make = sm.BlockToeplitz.from_kernel
    assert (
        type(make(kernel, (4, 5))) is sm.BlockToeplitz and type(make(kernel, (4, 5), "periodic")) is sm.BlockCirculant
    )
    assert type(sm.BlockCirculant.from_kernel(kernel, (4, 5))) is sm.BlockCirculant
    assert type(make(kernel, (4, 5), "reflect")) is sm.ReflectedConvolution
    assert torch.equal(
        sm.BlockCirculant.from_kernel(kernel, (4, 5), "zero").to_dense(), make(kernel, (4, 5)).to_dense()
    )


def test_batches_of_kernels_meet_batches_of_images() -> None:
    kernels, images = _numbers(3, 2, 3), _numbers(5, 3, 4, 6, seed=1)
    for boundary, mode in MODES.items():
        matrix = sm.BlockToeplitz.from_kernel(kernels, (4, 6), boundary)
        assert matrix.batch_shape == (3,)
        found = matrix.apply(images)
        for i, j in ((0, 0), (4, 2)):
            wanted = scipy.ndimage.convolve(images[i, j].numpy(), kernels[j].numpy(), mode=mode)
            _near(found[i, j], torch.from_numpy(wanted))
        _near(matrix[1].apply(images[:, 1]), found[:, 1])


@pytest.mark.parametrize("boundary", MODES)
def test_gradients_reach_the_kernel(boundary: str) -> None:
    for symmetric in (False, True) if boundary == "reflect" else (False,):
        kernel = _even(_numbers(3, 3), 2) if symmetric else _numbers(2, 3)

        def blurred(k: torch.Tensor, x: torch.Tensor, symmetric: bool = symmetric) -> torch.Tensor:
            moved = _even(k, 2) if symmetric else k
            return sm.BlockToeplitz.from_kernel(moved, (3, 4), boundary, symmetric=symmetric).apply(x)

        assert_gradients(blurred, (kernel, _numbers(3, 4)))
