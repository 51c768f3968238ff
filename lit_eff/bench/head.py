"""``lit-eff bench head``: the output head's kernels beside every peer that is installed, on one GPU.

``loss``: forward and backward of many exits through one output matrix. ``exits``: what exits cost a GPT-2
training step. ``linear``: products of few rows, as in decoding. ``confidence``: token, probability, gap and
entropy in one pass over the output matrix. ``--check`` tests correctness and the kernels' budgets instead, on
any machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_eff.bench.command import Cell, Command
from lit_eff.errors import UserError

SECTIONS = ("loss", "exits", "linear", "confidence")


def all_cells() -> list[Cell]:
    from lit_eff.bench import head_confidence, head_exits, head_linear, head_loss

    return [*head_loss.cells(), *head_exits.cells(), *head_linear.cells(), *head_confidence.cells()]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 1 if a check failed, a result of ours was wrong, or ours became slower than ``--compare``.

    Raises:
        UserError: for arguments that do not fit, or without a GPU (but for ``--check``).
    """
    return Command("head", __doc__ or "", SECTIONS, all_cells, _need_a_gpu, _check).run(argv)


def _need_a_gpu() -> None:
    import torch

    from lit_eff.kernels.cross_entropy import obstacle

    if not torch.cuda.is_available():
        raise UserError(
            "bench head needs an NVIDIA GPU and none is visible to torch; --check works without one"
        )
    if fault := obstacle("cuda"):
        raise UserError(f"bench head: {fault}")


def _check(texts: Sequence[str], processes: int) -> int:
    from lit_eff.bench.head_checks import run_checks

    return run_checks(texts, processes)


if __name__ == "__main__":
    from lit_eff.cli.main import main as command

    sys.exit(command(["bench", "head", *sys.argv[1:]]))
