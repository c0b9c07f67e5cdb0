"""One configuration a method: PEFT's usual fields and the method's own hyper-parameters, all plain JSON."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

from structmat._optional import need
from structmat.adapters.method import Method, from_json
from structmat.adapters.peft.types import member, prefix_of, require_version

__all__ = [
    "StructmatBoftConfig",
    "StructmatConfig",
    "StructmatFloraConfig",
    "StructmatHraConfig",
    "StructmatOftConfig",
    "StructmatSurmConfig",
]

require_version()
_peft = need("peft", "peft")
_SAVES_BIAS = hasattr(need("peft.tuners.tuners_utils", "peft").BaseTuner, "_get_learnable_bias_state_dict")
_LOADING = """
## Loading

The adapter's method comes from structmat: `pip install 'structmat[peft]'`, and import it before loading.

```python
import structmat.adapters.peft
from peft import PeftModel
```
"""


@dataclasses.dataclass
class StructmatConfig(_peft.PeftConfig):  # type: ignore[misc, name-defined]
    """What all methods share; the fields mean what they mean in PEFT's own configurations.

    Args:
        target_modules: names (or ends of names) of the layers to adapt, a regular expression, or "all-linear"; None:
            what PEFT's LoRA takes for the architecture.
        exclude_modules: names, or a regular expression, to leave out.
        init_weights: True starts at the base model, exactly; False adds normal noise of deviation 0.1 to every trained
            number of that start.
        layers_to_transform, layers_pattern: indices of the layers to adapt, and the name of the list they are in.
        bias: "none", "all", or "structmat_<method>_only", the biases of the adapted layers. Anything but "none" needs
            peft 0.21; earlier versions would not save them.
        modules_to_save: modules that are trained and saved along, a new head for instance.
    Raises: ValueError, when made, for an illegal value, with the legal ones.
    """

    short: ClassVar[str] = ""
    method_name: ClassVar[str] = ""

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    init_weights: bool = True
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    bias: str = "none"
    modules_to_save: list[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.short:
            raise TypeError("StructmatConfig is the base of the configurations; use StructmatHraConfig, for instance")
        self.peft_type = member(self.short)
        for field in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, field), (list, tuple)):
                setattr(self, field, set(getattr(self, field)))
        self._check()
        self.method()

    def _check(self) -> None:
        owner = type(self).__name__
        if not isinstance(self.init_weights, bool):
            raise ValueError(f"{owner}: init_weights must be True or False, got {self.init_weights!r}")
        legal = ("none", "all", f"{prefix_of(self.short)}only")
        if self.bias not in legal:
            raise ValueError(f"{owner}: bias must be one of {', '.join(map(repr, legal))}, got {self.bias!r}")
        if self.bias != "none" and not _SAVES_BIAS:
            raise ValueError(f"{owner}: peft {_peft.__version__} would not save biases; use bias='none' or peft 0.21")
        if isinstance(self.target_modules, str):
            for field in ("layers_to_transform", "layers_pattern"):
                if getattr(self, field) is not None:
                    raise ValueError(f"{owner}: {field} needs a list of target_modules, got {self.target_modules!r}")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"{owner}: layers_pattern needs layers_to_transform")

    def method(self) -> Method:
        """The method of structmat with these hyper-parameters; ValueError for illegal ones."""
        shared = {field.name for field in dataclasses.fields(StructmatConfig)}
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in shared}
        return from_json(self.method_name, own)

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As PEFT's; the card that ``PeftModel.save_pretrained`` wrote beside it also says what to import first."""
        super().save_pretrained(save_directory, **kwargs)
        for folder in (Path(save_directory), Path(save_directory).parent):  # an adapter not called "default" lies below
            config = folder / "adapter_config.json"
            if config.is_file() and "STRUCTMAT_" not in config.read_text(encoding="utf-8", errors="replace"):
                continue  # the folder of an adapter of PEFT's own, in which ours was saved
            card = folder / "README.md"
            text = card.read_text(encoding="utf-8") if card.is_file() else ""
            if "library_name: peft" in text and "structmat.adapters.peft" not in text:
                card.write_text(text.rstrip("\n") + "\n" + _LOADING, encoding="utf-8")


@dataclasses.dataclass
class StructmatBoftConfig(StructmatConfig):
    """``structmat.adapters.BOFT``: ``W_new = diag(s) W R^T``, R an orthogonal butterfly; its fields, see there.

    ``dropout`` may be a pair.
    """

    short: ClassVar[str] = "boft"
    method_name: ClassVar[str] = "BOFT"

    block: int = 8
    factors: int = 2
    dropout: float | list[float] = 0.0
    scale: bool = True
    mixed: bool = False
    step: str = "even"


@dataclasses.dataclass
class StructmatOftConfig(StructmatConfig):
    """``structmat.adapters.OFT``: ``W_new = diag(s) W R^T``, R block diagonal; its fields, see there.

    Without ``block`` and ``blocks`` the block is 32. ``constraint`` is kept by ``after_step``, or by
    ``StructmatCallback`` in a Trainer.
    """

    short: ClassVar[str] = "oft"
    method_name: ClassVar[str] = "OFT"

    block: int | None = None
    blocks: int | None = None
    shared: bool = False
    constraint: float | None = None
    scale: bool = True
    step: str = "even"

    def __post_init__(self) -> None:
        if self.block is None and self.blocks is None:
            self.block = 32
        super().__post_init__()


@dataclasses.dataclass
class StructmatHraConfig(StructmatConfig):
    """``structmat.adapters.HRA``: ``W_new = W H_1 ... H_r``; its fields, see there.

    ``regulariser`` acts through ``penalty``, or through ``StructmatCallback`` in a Trainer.
    """

    short: ClassVar[str] = "hra"
    method_name: ClassVar[str] = "HRA"

    rank: int = 8
    regulariser: float = 0.0
    orthonormal: bool = False
    step: str = "even"


@dataclasses.dataclass
class StructmatFloraConfig(StructmatConfig):
    """``structmat.adapters.FLoRA``: ``W_new = W + s G x_1 A_1 ... x_N A_N``; its fields, see there.

    ``start`` is "vision" or "nlp".
    """

    short: ClassVar[str] = "flora"
    method_name: ClassVar[str] = "FLoRA"

    ranks: int | list[int] = 8
    scale: float | None = None
    start: str = "vision"


@dataclasses.dataclass
class StructmatSurmConfig(StructmatConfig):
    """``structmat.adapters.SURM``: ``W_new = W + s D``, D circulant, Toeplitz or of another structure; its fields, see
    there.
    """

    short: ClassVar[str] = "surm"
    method_name: ClassVar[str] = "SURM"

    structure: str = "circulant"
    scale: float = 9.2
    form: str = "direct"
    rank: int | None = None
