"""One door for third-party packages that only some users need."""

import importlib
from types import ModuleType

__all__ = ["need"]


def need(name: str, extra: str) -> ModuleType:
    """Import module ``name``; if it is absent, raise ``ImportError`` with the pip line of the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or name.split(".")[0] != error.name.split(".")[0]:
            raise  # the package is there, and something it needs is not: its own message says it best
        message = f"this needs the package {name!r}, which is not installed: pip install 'structmat[{extra}]'"
        raise ImportError(message) from error
