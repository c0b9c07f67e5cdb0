"""The combinations of a change and a layer that are refused when an adapter is attached, each with its reason.

All others work; what a method itself cannot do (a block that does not divide the columns) it says in ``init``.
"""

from structmat.adapters.kinds import kind_named
from structmat.adapters.method import Compose, Method, Parts, Residual, Target, Update
from structmat.errors import StructureError

__all__ = ["REFUSED", "require_legal"]

_TRANSPOSED = (
    "a transposed convolution spreads each input over the outputs, so a rotation of its inputs' channels and taps has "
    "no meaning that a merged weight could keep; legal are additions: LoRA, FLoRA, SURM"
)
_LOOKUP = "a rotation of an embedding's columns would mix all of its words; legal are additions: LoRA, FLoRA, SURM"
_NOT_LAST = (
    "its output does not hold the features on the last axis; legal are Linear, Conv1D of transformers, and other "
    "linear modules"
)
_NO_OUTPUT = "a parameter has no output of its own; adapt the module that uses it"

# (kind of layer, kind of change) -> reason
REFUSED: dict[tuple[str, type], str] = {
    **{(f"ConvTranspose{k}d", Compose): _TRANSPOSED for k in (1, 2, 3)},
    ("Embedding", Compose): _LOOKUP,
    **{(name, Residual): _NOT_LAST for k in (1, 2, 3) for name in (f"Conv{k}d", f"ConvTranspose{k}d")},
    ("Embedding", Residual): _NOT_LAST,
    ("Parameter", Residual): _NO_OUTPUT,
    ("ParameterT", Residual): _NO_OUTPUT,
}


def require_legal(method: Method, target: Target, update: Update) -> None:
    """StructureError if the change cannot be made to this kind of layer."""
    for one in [part for _, _, part in update.updates] if isinstance(update, Parts) else [update]:
        reason = REFUSED.get((target.kind, type(one)))
        if reason is None and isinstance(one, Compose) and kind_named(target.kind).additive:
            reason = f"a {target.kind} takes additions only"
        if reason is not None:
            raise StructureError(f"{method!r} on layer {target.name!r}, a {target.kind}: {reason}")
