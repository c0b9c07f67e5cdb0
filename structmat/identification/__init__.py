"""``sm.identify``: how near every structure is to a dense matrix, and with how many numbers."""

from structmat.identification.search import identify
from structmat.identification.table import Candidate, Identification

__all__ = ["Candidate", "Identification", "identify"]
