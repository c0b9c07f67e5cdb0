"""Rules between different types, one file a family, a verb a section. Rules within one family stay in the file of the
type."""

from structmat.algebra import banded as _banded
from structmat.algebra import basic as _basic
from structmat.algebra import blocks as _blocks
from structmat.algebra import butterfly as _butterfly
from structmat.algebra import cauchy as _cauchy
from structmat.algebra import displacement as _displacement
from structmat.algebra import entrywise as _entrywise
from structmat.algebra import kronecker as _kronecker
from structmat.algebra import low_rank as _low_rank
from structmat.algebra import multilevel as _multilevel
from structmat.algebra import orthogonal as _orthogonal
from structmat.algebra import placement as _placement
from structmat.algebra import submatrix as _submatrix
from structmat.algebra import sums as _sums
from structmat.algebra import toeplitz as _toeplitz
from structmat.algebra import toeplitz_hankel as _toeplitz_hankel

del _banded, _basic, _blocks, _butterfly, _cauchy, _displacement, _entrywise, _kronecker, _low_rank
del _multilevel, _orthogonal, _placement, _submatrix, _sums, _toeplitz, _toeplitz_hankel

__all__: list[str] = []
