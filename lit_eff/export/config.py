"""What ``lit-eff export`` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lit_eff.errors import UserError, nearest

Format = Literal["onnx", "torch", "hf"]
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(frozen=True)
class ExportConfig:
    """The ``export`` section of a recipe.

    Attributes:
        formats: ``onnx``: segments for ONNX Runtime, run without torch; ``torch``: safetensors; ``hf``: a
            Hugging Face folder.

    Raises:
        UserError: for an unknown format or none at all.
    """

    formats: tuple[Format, ...] = ("onnx",)

    def __post_init__(self) -> None:
        if not self.formats:
            raise UserError(f"export.formats is empty; expected some of {', '.join(FORMATS)}")
        for name in self.formats:
            if name not in FORMATS:
                raise UserError(f"unknown export format {name!r}{nearest(name, FORMATS)}")
