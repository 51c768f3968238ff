"""``lit-eff bench head --check``: the output head's kernels against their references, and their budgets.

With a GPU: every case in every dtype. Without: in Triton's interpreter, which takes no bfloat16.

Shapes: N tokens, C model dim, V vocabulary, E exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_eff.bench.budgets import TARGETS, resource_faults
from lit_eff.bench.checks import Outcome, outcome_of, print_failure, report, run_jobs
from lit_eff.errors import UserError
from lit_eff.profiling.launch import Launch

# Bytes a thread: what a row needs before and after the loops over its columns.
SPILLS = {"exit_rows_kernel": 64}

FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softcap": {"softcap": 5.0},
    "label smoothing and z-loss": {"label_smoothing": 0.1, "z_loss": 1e-3},
    "distillation": {"distillation": 0.5},
    "hot distillation": {"distillation": 0.3, "temperature": 2.0, "softcap": 5.0},
}


@dataclass(frozen=True)
class LossCheck:
    """Loss, statistics and gradients of one form by the rule of `attention_rule.compare`."""

    form: str
    dtype: str
    device: str
    exits: int = 3
    tokens: int = 70
    vocabulary: int = 1003

    compiles = False

    @property
    def name(self) -> str:
        return f"loss, {self.form}, {self.exits} exits, {self.tokens}x{self.vocabulary}, {self.dtype}"

    @property
    def interprets(self) -> bool:
        return self.device == "cpu"

    def run(self) -> Outcome:
        return outcome_of(self.name, self._faults)

    def _faults(self) -> list[str]:
        import torch

        from lit_eff.bench.attention_rule import compare, poisoned_memory
        from lit_eff.kernels.cross_entropy import (
            multi_exit_cross_entropy,
            multi_exit_cross_entropy_reference,
        )

        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(self.tokens, 64, generator=generator) for _ in range(self.exits)]
        drawn.append(torch.randn(self.vocabulary, 64, generator=generator) / 4)
        leaves = [each.to(self.device, dtype).requires_grad_() for each in drawn]
        targets_N = torch.randint(self.vocabulary, (self.tokens,), generator=generator)
        targets_N[::9] = -100
        targets_N = targets_N.to(self.device)
        *hiddens, matrix_VC = leaves
        shares = [(e + 1) / self.exits for e in range(self.exits)]
        options = FORMS[self.form]

        def results(losses: Any) -> list[torch.Tensor]:
            # Means that count whole tokens may differ by one where two logits are all but equal.
            return [losses.loss.detach(), losses.nll_E, *torch.autograd.grad(losses.loss * 1024, leaves)]

        def reference(accumulate: torch.dtype) -> list[torch.Tensor]:
            return results(
                multi_exit_cross_entropy_reference(
                    hiddens, [matrix_VC] * self.exits, targets_N, exit_weights=shares, accumulate=accumulate,
                    **options,
                )
            )  # fmt: skip

        with poisoned_memory():
            got = results(
                multi_exit_cross_entropy(
                    hiddens, matrix_VC, targets_N, exit_weights=shares, chunk=32, **options
                )
            )
        names = ["loss", "nll_E", *(f"hidden {e}" for e in range(self.exits)), "matrix"]
        exact, plain = reference(torch.float64), reference(dtype)
        return [
            fault
            for name, one, theirs, true in zip(names, got, plain, exact, strict=True)
            for fault in compare(name, one, theirs, true.double(), dtype)
        ]


@dataclass(frozen=True)
class LossBudget:
    """The row kernel's forms at one dtype and vocabulary, compiled for one target."""

    capability: int
    dtype: str
    vocabulary: int

    compiles = True
    interprets = False

    @property
    def name(self) -> str:
        return f"budget, loss, sm_{self.capability}, {self.vocabulary} columns, {self.dtype}"

    def run(self) -> Outcome:
        return Outcome(self.name, resource_faults(self._launches, self.capability, SPILLS))

    def _launches(self) -> list[Launch]:
        """Of the last exit and of another, with a bias, in every form; and the backward pass's."""
        import torch

        from lit_eff.kernels.cross_entropy.call import LossCall, Options, Workspace
        from lit_eff.kernels.cross_entropy.rows import row_launch
        from lit_eff.kernels.cross_entropy.scale import scale_launch

        dtype, found = getattr(torch, self.dtype), []
        with torch.device("meta"):
            hidden_NC, matrix_VC = (
                torch.empty(256, 64, dtype=dtype),
                torch.empty(self.vocabulary, 64, dtype=dtype),
            )
            for form in FORMS.values():
                options = Options(
                    ignore_index=-100,
                    label_smoothing=form.get("label_smoothing", 0.0),
                    z_loss=form.get("z_loss", 0.0),
                    softcap=form.get("softcap"),
                    distillation=form.get("distillation", 0.0),
                    temperature=form.get("temperature", 1.0),
                    chunk=256,
                    tokens_group=None,
                    vocabulary_group=None,
                    first_column=0,
                    vocabulary=None,
                    columns=None,
                )
                call = LossCall(
                    [hidden_NC] * 2, [matrix_VC], [matrix_VC[:, 0].contiguous()], [0, 0], [-1, 0], [0.5, 0.5],
                    torch.empty(256, dtype=torch.int64), torch.empty(256), [True] * 4, options,
                    torch.empty(5, 2, 256),
                )  # fmt: skip
                workspace = Workspace(call, 256)
                for e in (1, 0):
                    chunk = workspace.chunk(slice(0, 256), e)
                    found.append(row_launch(call, chunk, e, statistics=True, finish=True))
            found.append(scale_launch(matrix_VC, torch.empty(())))
        return found


def checks_here(texts: Sequence[str]) -> list[LossCheck | LossBudget]:
    """What this machine can check, narrowed to names that contain one of ``texts``.

    Raises:
        UserError: no name contains them.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtypes = ("float32", "float16", "bfloat16")
    found: list[LossCheck | LossBudget] = [
        LossCheck(form, dtype, device) for form in FORMS for dtype in dtypes[: 3 if device == "cuda" else 2]
    ]
    found += [
        LossBudget(capability, dtype, vocabulary)
        for capability in TARGETS
        for dtype in ("bfloat16", "float32")
        for vocabulary in (1_003, 8_192, 50_257, 128_256)
    ]
    chosen = [each for each in found if not texts or any(text in each.name for text in texts)]
    if not chosen:
        raise UserError(f"--cells {' '.join(texts)!r} is in no check's name (such as {found[0].name!r})")
    return chosen


def run_checks(texts: Sequence[str], processes: int) -> int:
    """Run, print and return the exit code: 1 if anything failed."""
    found = checks_here(texts)
    return report(found, run_jobs(found, processes, print_failure))
