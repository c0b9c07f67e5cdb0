"""Whether the code that reads a weight looks at what it is, its dtype or shape, and not at its numbers.

Models ask a layer for the dtype of its weight before they call it (T5 does, at every forward), and the weight of an
adapted layer is formed when it is read, m n numbers each time. So the reader is looked at: an attribute that is loaded
and at once asked for its dtype, device or sizes, or for its type, is never used as a tensor. The instructions after the
load say so with certainty; of what they do not say, the answer is no.
"""

import dis
import functools
import itertools
from types import CodeType, FrameType

__all__ = ["looks_only"]

_FACTS = frozenset(("device", "dtype", "layout", "shape", "size", "ndim", "dim", "numel", "nelement", "is_complex"))
_FACTS |= {"itemsize", "element_size", "is_cuda", "is_floating_point", "is_meta"}
_NAMES = ("LOAD_FAST", "LOAD_GLOBAL", "LOAD_DEREF", "LOAD_NAME", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW")
_ATTRIBUTES = ("LOAD_ATTR", "LOAD_METHOD")
_PASSED = ("EXTENDED_ARG", "CACHE", "PRECALL", "PUSH_NULL", "NOP", "RESUME")


def looks_only(reader: FrameType, attribute: str) -> bool:
    """Whether ``reader``, a frame that is loading ``attribute`` of some object, asks the result for facts alone:
    ``x.attribute.dtype``, ``x.attribute.size(0)`` or ``isinstance(x.attribute, T)``, each written as one expression.
    """
    return _verdict(reader.f_code, reader.f_lasti, attribute) and "isinstance" not in reader.f_globals


@functools.lru_cache(maxsize=1024)
def _verdict(code: CodeType, at: int, attribute: str) -> bool:
    steps = list(dis.get_instructions(code))
    current = max((step for step in steps if step.offset <= at), key=lambda step: step.offset)
    if current.opname != "LOAD_ATTR" or current.argval != attribute:
        return False  # a call (getattr, a function of C) reads it, and what follows is done to its result
    steps = [step for step in steps if step.opname not in _PASSED]
    after = [step for step in steps if step.offset > current.offset]
    if after and after[0].opname in _ATTRIBUTES:
        return after[0].argval in _FACTS
    return _is_instance([step for step in steps if step.offset < current.offset], after)


def _is_instance(before: list[dis.Instruction], after: list[dis.Instruction]) -> bool:
    """``isinstance(name.a.b, other.c)``: ``before`` ends with the load of name.a, ``after`` begins with other."""

    def past(steps: list[dis.Instruction]) -> list[dis.Instruction]:
        return list(itertools.dropwhile(lambda step: step.opname == "LOAD_ATTR", steps))

    opening = past(before[::-1])[:2]
    if len(opening) < 2 or opening[0].opname not in _NAMES or opening[1].opname != "LOAD_GLOBAL":
        return False
    if opening[1].argval != "isinstance" or not after or after[0].opname not in _NAMES:
        return False
    closing = past(after[1:])[:1]
    return bool(closing) and closing[0].opname == "CALL" and closing[0].arg == 2
