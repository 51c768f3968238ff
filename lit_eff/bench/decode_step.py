"""``lit-eff bench decode_step``: a whole token of a Llama-type model beside the same model in plain PyTorch.

``step``: batches of 1, 8 and 16 rows and the verification of 8 drafted tokens, of a 1.1B and a 135M shape:
our one launch a step and our launch a phase, the model's own layers, and a compiled step with a static cache
in a CUDA graph. ``--check`` tests correctness and the kernel's budgets instead, on any machine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lit_eff.bench.command import Cell, Command
from lit_eff.errors import UserError

SECTIONS = ("step",)


def all_cells() -> list[Cell]:
    from lit_eff.bench import step_cells

    return [*step_cells.cells()]


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0; 1 if a check failed, a result of ours was wrong, or ours became slower than ``--compare``.

    Raises:
        UserError: for arguments that do not fit, or without a GPU (but for ``--check``).
    """
    return Command("decode_step", __doc__ or "", SECTIONS, all_cells, _need_a_gpu, _check).run(argv)


def _need_a_gpu() -> None:
    import torch

    from lit_eff.kernels.device import device_obstacle

    if not torch.cuda.is_available():
        raise UserError(
            "bench decode_step needs an NVIDIA GPU and none is visible to torch; --check works without one"
        )
    if fault := device_obstacle(torch.device("cuda")):
        raise UserError(f"bench decode_step: {fault}")


def _check(texts: Sequence[str], processes: int) -> int:
    from lit_eff.bench.step_checks import run_checks

    return run_checks(texts, processes)


if __name__ == "__main__":
    from lit_eff.cli.main import main as command

    sys.exit(command(["bench", "decode_step", *sys.argv[1:]]))
