"""Calls of the norms that several tests share."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_eff.kernels.norm import layer_norm, norm_reference, rms_norm


@dataclass(frozen=True)
class NormCase:
    """``residual`` is its dtype, if there is one."""

    rows: int = 5
    channels: int = 48
    centered: bool = False
    gain: bool = True
    shift: bool = False
    residual: torch.dtype | None = None
    out_dtype: torch.dtype | None = None
    eps: float = 1e-5

    def __str__(self) -> str:
        words = [f"{self.rows}x{self.channels}", "layer" if self.centered else "rms"]
        words += [name for name in ("gain", "shift") if getattr(self, name)]
        words += [str(each).removeprefix("torch.") for each in (self.residual, self.out_dtype) if each]
        return "-".join(words)

    def draw(self, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor | None]:
        """x, residual, weight, bias and gradients of both outputs; a mean far from 0, a row of zeros."""
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))

        def randn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)

        shape = (self.rows, self.channels)
        total = torch.promote_types(dtype, self.residual) if self.residual else dtype
        x = randn(*shape) + 0.5
        x[:1] = 0
        return {
            "x": x,
            "residual": randn(*shape, dtype=self.residual) if self.residual else None,
            "weight": 1 + 0.3 * randn(self.channels) if self.gain else None,
            "bias": randn(self.channels) if self.shift else None,
            "dout": randn(*shape, dtype=self.out_dtype or total),
            "dsum": randn(*shape, dtype=total) if self.residual else None,
        }

    def run(self, tensors: dict[str, Tensor | None]) -> list[Tensor]:
        """The public function: normalised rows, then the sum if there is a residual."""
        options: dict[str, Any] = {"residual": tensors["residual"], "out_dtype": self.out_dtype}
        if self.centered:
            found: Any = layer_norm(tensors["x"], tensors["weight"], tensors["bias"], self.eps, **options)  # type: ignore[arg-type]
        else:
            found = rms_norm(tensors["x"], tensors["weight"], self.eps, **options)  # type: ignore[arg-type]
        return list(found) if self.residual else [found]

    def reference(self, tensors: dict[str, Tensor | None], accumulate: torch.dtype) -> list[Tensor]:
        out, total = norm_reference(
            tensors["x"],  # type: ignore[arg-type]
            tensors["weight"],
            tensors["bias"],
            self.eps,
            centered=self.centered,
            residual=tensors["residual"],
            out_dtype=torch.float64 if accumulate == torch.float64 else self.out_dtype,
            accumulate=accumulate,
        )
        return [out, total] if self.residual else [out]

    def exact(self, tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """Outputs and gradients in float64."""
        wide = {name: None if each is None else each.double() for name, each in tensors.items()}
        return outputs_and_gradients(lambda t: self.reference(t, torch.float64), wide)

    def plain(self, tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
        """Outputs and gradients of the reference in float32."""
        return outputs_and_gradients(lambda t: self.reference(t, torch.float32), tensors)

    def ours(self, tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
        return outputs_and_gradients(self.run, tensors)


def outputs_and_gradients(function: Any, tensors: dict[str, Tensor | None]) -> dict[str, Tensor]:
    leaves = {
        name: each.detach().clone().requires_grad_()
        for name, each in tensors.items()
        if each is not None and not name.startswith("d")
    }
    outputs = function({**tensors, **leaves})
    grads = [tensors["dout"], tensors["dsum"]][: len(outputs)]
    found = torch.autograd.grad(outputs, list(leaves.values()), grads)  # type: ignore[arg-type]
    named = dict(zip(("out", "sum"), outputs, strict=False))
    return {**{k: v.detach() for k, v in named.items()}, **dict(zip(leaves, found, strict=True))}


F32, F16 = torch.float32, torch.float16
CASES = [
    NormCase(),
    NormCase(gain=False),
    NormCase(centered=True, shift=True),
    NormCase(centered=True, gain=False),
    NormCase(residual=F32),
    NormCase(centered=True, shift=True, residual=F32),
    NormCase(rows=1, channels=1),
    NormCase(rows=70, channels=17, residual=F32),
    NormCase(rows=3, channels=2500, centered=True, shift=True),
    NormCase(rows=33, channels=130),
]
