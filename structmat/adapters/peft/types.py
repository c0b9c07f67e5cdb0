"""New members of PEFT's enumeration of methods, which PEFT itself has no door for."""

from typing import Any

from structmat._optional import need

__all__ = ["METHODS", "member", "prefix_of", "require_version"]

METHODS = ("boft", "oft", "hra", "flora", "surm")
OLDEST = (0, 18)


def require_version() -> None:
    """ImportError for a peft that cannot register methods of others."""
    peft = need("peft", "peft")
    found = tuple(int(part) for part in str(peft.__version__).split(".")[:2])
    if found < OLDEST:
        raise ImportError(f"structmat.adapters.peft needs peft 0.18 or newer, found {peft.__version__}")


def prefix_of(method: str) -> str:
    """What the names of a method's tensors start with; transformers derives the same from the PEFT type."""
    return f"structmat_{method}_"


def member(method: str) -> Any:
    """``PeftType.STRUCTMAT_<METHOD>``, made if it is not there.

    An enumeration is closed once its class exists; a member made by hand and entered in its tables is found by name,
    by value and by iteration, and is the same object after pickle and deepcopy. The tests hold this for each version.
    """
    cls: Any = need("peft.utils.peft_types", "peft").PeftType
    name = f"STRUCTMAT_{method.upper()}"
    if name in cls.__members__:
        return cls[name]
    made: Any = str.__new__(cls, name)
    made._name_ = made._value_ = name
    made._sort_order_ = len(cls._member_names_)
    made.__objclass__ = cls
    cls._member_names_.append(name)
    cls._member_map_[name] = made
    cls._value2member_map_[name] = made
    values = getattr(cls, "_hashable_values_", None)  # what `in` reads on newer Pythons
    if values is not None:
        values.append(name)
    type.__setattr__(cls, name, made)  # the enumeration's own refuses to set a member
    return made
