"""The probabilities behind the checks that see products only; z are independent standard Gaussian vectors.

Each holds for every fixed matrix E, real or complex (with complex Gaussian vectors of unit variance):

    Frobenius, below:  P( mean_i ||E z_i||^2 <= c ||E||_F^2 ) <= (c e^(1-c))^(k/2),  c < 1
    Frobenius, above:  P( mean_i ||E z_i||^2 >= c ||E||_F^2 ) <= (c e^(1-c))^(k/2),  c > 1
    spectral:          P( max_i ||E z_i|| <= a ||E||_2 ) <= (a sqrt(2/pi))^k
    rank:              P( t sigma_(r+1)(E Z) < sigma_(r+1)(E) ) <= (e sqrt(r+q) / (q t))^q / sqrt(2 pi q),  Z (n, r + q)
    least eigenvalue:  P( Ritz value - least > h (largest - least) ) <= 1.648 sqrt(n) e^(-sqrt(h) (2 k - 1)), k steps

The first two: with l the eigenvalues of E^H E over their sum, the Laplace transform prod (1 + 2 s l_i)^(-1/2) is at
most (1 + 2 s)^(-1/2) for every s > -1/2, since prod (1 + 2 s l_i) >= 1 + 2 s; then Chernoff's bound. The third: the
part of E z along the leading left singular vector is ``||E||_2`` times one Gaussian number. The fourth: E Z has at
least the singular values of diag(sigma_1..sigma_(r+1)) G, G an (r + 1) x (r + q) Gaussian matrix, and the least
singular value of G is bounded by N. Halko, P. G. Martinsson, J. A. Tropp, Finding structure with randomness, SIAM
Review 53, 2011, proposition A.3. The fifth: J. Kuczynski, H. Wozniakowski, SIAM J. Matrix Anal. Appl. 13, 1992,
theorem 4.2.
"""

import math

__all__ = ["ABOVE", "FACTOR", "SPECTRAL", "eigenvalue_resolution", "frobenius", "rank_failure", "ratio_failure"]

FACTOR = 10.0  # what a certificate gives away: the true value may be ten times the estimate
ABOVE = 10.0  # the estimate of a squared norm may be ten times too large
SPECTRAL = FACTOR * math.sqrt(2 / math.pi)  # ||E||_2 <= SPECTRAL max ||E z_i|| but with probability FACTOR^-k


def frobenius(probes: int, share: float = FACTOR**-2) -> float:
    """The probability that the mean of ``probes`` squared norms is below (above, for share > 1) ``share ||E||_F^2``."""
    return (share * math.exp(1 - share)) ** (probes / 2)


def ratio_failure(probes: int) -> float:
    """That ``||E||_F / ||A||_F`` exceeds ``FACTOR sqrt(ABOVE)`` times the ratio of the estimates."""
    return min(1.0, frobenius(probes) + frobenius(probes, ABOVE))


def rank_failure(rank: int, extra: int, factor: float = FACTOR) -> float:
    """That ``sigma_(rank+1)`` exceeds ``factor`` times that of a sketch with ``rank + extra`` vectors."""
    share = math.e * math.sqrt(rank + extra) / (extra * factor)
    return min(1.0, share**extra / math.sqrt(2 * math.pi * extra))


def eigenvalue_resolution(order: int, steps: int, failure: float) -> float:
    """The h for which k Lanczos steps find the least eigenvalue within h of the spread, but with this probability."""
    return min(1.0, (math.log(1.648 * math.sqrt(max(1, order)) / failure) / (2 * steps - 1)) ** 2)
