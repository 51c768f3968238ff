"""``lit-eff bench attention``: our attention beside every peer that is installed, in one run on one GPU.

Cells of training (forward and backward), decoding and verifying; ratios, memory and the GPU's own ceilings.
``--check`` tests correctness and the kernels' budgets instead, on any machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_eff.bench.command import Cell, Command
from lit_eff.errors import UserError

SECTIONS = ("training", "decode", "verify")


def all_cells() -> list[Cell]:
    from lit_eff.bench import attention_cached, attention_training

    return [*attention_training.cells(), *attention_cached.cells()]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 1 if a check failed, a result of ours was wrong, or ours became slower than ``--compare``.

    Raises:
        UserError: for arguments that do not fit, or without a GPU (but for ``--check``).
    """
    return Command("attention", __doc__ or "", SECTIONS, all_cells, _need_a_gpu, _check).run(argv)


def _need_a_gpu() -> None:
    import torch

    from lit_eff.kernels.attention import supports

    if not torch.cuda.is_available():
        raise UserError(
            "bench attention needs an NVIDIA GPU and none is visible to torch; --check works without one"
        )
    support = supports("cuda", head_dim=64, dtype=torch.bfloat16)
    if not support:
        raise UserError(f"bench attention: {support.reason}")


def _check(texts: Sequence[str], processes: int) -> int:
    from lit_eff.bench.attention_checks import run_checks

    return run_checks(texts, processes)


if __name__ == "__main__":
    from lit_eff.cli.main import main as command

    sys.exit(command(["bench", "attention", *sys.argv[1:]]))
