"""What has no closed form: applied, and never multiplied out. The fallback rules of every verb."""

from structmat.lazy.expressions import Product, Scaled
from structmat.lazy.implicit import Implicit
from structmat.lazy.sums import Sum
from structmat.lazy.wrappers import Inverse, Prepared, Slice

__all__ = ["Implicit", "Inverse", "Prepared", "Product", "Scaled", "Slice", "Sum"]
