"""Launches of sampling and of acceptance, with the room they work in.

Shapes: N rows, B sequences, V vocabulary, M nodes, R parents, C children, J draws, D depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import triton
from torch import Tensor

from lit_eff.kernels.device import capability_of
from lit_eff.kernels.sampling.accept import accept_kernel, lookup_kernel, next_kernel, residual_kernel
from lit_eff.kernels.sampling.arguments import Rows, TreeTables
from lit_eff.kernels.sampling.draw import draw_kernel
from lit_eff.kernels.sampling.plan import BINS, Plan, plan_of
from lit_eff.kernels.sampling.select import coarse_kernel, fine_count_kernel, fine_mass_kernel, peak_kernel
from lit_eff.kernels.sampling.tree import Tree
from lit_eff.kernels.sampling.weights import STATE
from lit_eff.profiling.launch import Launch

PASSES = 5  # over a row, each with a count of the programs that are done with it


@dataclass(frozen=True)
class Parameters:
    """One value a sequence (B,): float32, but for ``top_k`` (int32), ``seed`` and ``position`` (int64)."""

    temperature: Tensor
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    seed: Tensor
    position: Tensor


@dataclass(frozen=True)
class Selection:
    """Rows of logits, target's (N1, V) and maybe draft's (N2, V), on their way to kept weights."""

    target_NV: Tensor
    draft_NV: Tensor | None
    parameters: Parameters
    target: int | None = None  # compile for this capability rather than for the tensors' device

    @cached_property
    def plan(self) -> Plan:
        return plan_of(self.target_NV.shape[1])

    @property
    def rows(self) -> int:
        return self.target_NV.shape[0] + (0 if self.draft_NV is None else self.draft_NV.shape[0])

    @property
    def blocks(self) -> int:
        return self.plan.blocks(self.target_NV.shape[1])

    @cached_property
    def early(self) -> bool:
        """Whether launches may start before the one ahead of them ends (Hopper and later)."""
        return (capability_of(self.target_NV.device) if self.target is None else self.target) >= 90

    @cached_property
    def zeros(self) -> dict[str, Tensor]:
        """What must be 0 at first, all of it in one tensor."""
        bins = self.rows * BINS
        top_k, top_p = self.parameters.top_k is not None, self.parameters.top_p is not None
        sizes = {
            "p_masses": 2 * bins * (top_k or top_p),
            "p_fine_count_masses": 2 * bins * top_k,
            "p_fine_masses": 2 * bins * top_p,
            "p_counts": bins * top_k,
            "p_fine_counts": bins * top_k,
            "done": PASSES * self.rows,
        }
        room = torch.zeros(sum(sizes.values()), dtype=torch.int32, device=self.target_NV.device)
        parts = dict(zip(sizes, torch.split(room, list(sizes.values())), strict=True))
        return {name: part.view(torch.int64) if "mass" in name else part for name, part in parts.items()}

    @cached_property
    def shared(self) -> dict[str, Any]:
        """What every pass takes."""
        target_NV, draft_NV = self.target_NV, self.draft_NV
        sequences = self.parameters.seed.shape[0]
        beside_NV = target_NV if draft_NV is None else draft_NV
        device = target_NV.device
        return {
            "rows": Rows(
                target_NV, _stride(target_NV), target_NV.shape[0], target_NV.shape[0] // sequences,
                beside_NV, _stride(beside_NV), max(1, beside_NV.shape[0] // sequences),
            ),
            "p_peak": torch.empty((self.rows, self.blocks), dtype=torch.float32, device=device),
            "p_state": torch.empty((self.rows, STATE.value), dtype=torch.int64, device=device),
            "p_above": torch.empty((self.rows, self.blocks), dtype=torch.int64, device=device),
            "p_equal": torch.empty((self.rows, self.blocks), dtype=torch.int32, device=device),
            "p_temperature": self.parameters.temperature,
            "p_top_k": self.parameters.top_k,
            "p_top_p": self.parameters.top_p,
            "p_min_p": self.parameters.min_p,
            "p_seed": self.parameters.seed,
            "p_position": self.parameters.position,
            "vocabulary": target_NV.shape[1],
            "blocks": self.blocks,
            "BLOCK": self.plan.block,
            "BLOCKS": triton.next_power_of_2(self.blocks),
            "EARLY": self.early,
        }  # fmt: skip

    def launch(
        self, kernel: Any, programs: int, *, max_registers: int | None = None, **arguments: Any
    ) -> Launch:
        """A launch with whatever of `shared` and of `zeros` the kernel asks for."""
        known = {**self.shared, **self.zeros, **arguments}
        taken = {name: known[name] for name in kernel.arg_names}
        return Launch(kernel, (programs,), taken, self.plan.num_warps, 1, max_registers, early=self.early)

    def done(self, place: int) -> Tensor:
        return self.zeros["done"][place * self.rows : (place + 1) * self.rows]

    def borders(self) -> list[Launch]:
        """The launches that find which tokens are kept."""
        programs, parameters = self.rows * self.blocks, self.parameters
        found = [self.launch(peak_kernel, programs)]
        if parameters.top_k is not None or parameters.top_p is not None:
            found.append(self.launch(coarse_kernel, programs, p_done=self.done(0)))
        if parameters.top_k is not None:
            masses = self.zeros["p_fine_count_masses"]
            found.append(self.launch(fine_count_kernel, programs, p_fine_masses=masses, p_done=self.done(1)))
        if parameters.top_p is not None:
            found.append(self.launch(fine_mass_kernel, programs, p_done=self.done(2)))
        return found

    def draws(self, token_NJ: Tensor | None, logprob_NJ: Tensor | None, purpose: int) -> Launch:
        """The launch that adds up what is kept and draws tokens from it, if asked to."""
        draws = 0 if token_NJ is None else token_NJ.shape[1]
        return self.launch(
            draw_kernel, self.rows * self.blocks, p_token=token_NJ, p_logprob=logprob_NJ, p_done=self.done(3),
            DRAWS=draws, SLOTS=triton.next_power_of_2(max(1, draws)), PURPOSE=purpose,
        )  # fmt: skip


def _stride(rows_NV: Tensor) -> int:
    """Of a single row it is never used, and must not set a call of one row apart."""
    return rows_NV.shape[1] if rows_NV.shape[0] == 1 else rows_NV.stride(0)


def sample_launches(selection: Selection, token_NJ: Tensor, logprob_NJ: Tensor, purpose: int) -> list[Launch]:
    return [*selection.borders(), selection.draws(token_NJ, logprob_NJ, purpose)]


def accept_launches(
    selection: Selection,
    drafts_BM: Tensor,
    tree: Tree,
    kept_BD: Tensor,
    count_B: Tensor,
    next_B: Tensor,
) -> list[Launch]:
    """Borders of all rows, their totals, then acceptance; with draft rows, drafts were drawn from them."""
    batch, nodes = drafts_BM.shape
    blocks, device = selection.blocks, drafts_BM.device
    sampled = selection.draft_NV is not None
    weights_2BM = torch.empty((2, batch, nodes), dtype=torch.int64, device=device)
    own = {
        "tree": TreeTables(*tree.tables(device), nodes, tree.width, len(tree.families)),
        "p_drafts": drafts_BM,
        "p_target_weight": weights_2BM[0],
        "p_draft_weight": weights_2BM[1],
        "p_residual_total": torch.zeros(
            (batch, len(tree.families), tree.width), dtype=torch.int64, device=device
        ),
        "p_walk": torch.empty((batch, 2), dtype=torch.int32, device=device),
        "p_sums": torch.empty((batch, 2, blocks), dtype=torch.int64, device=device),
        "p_kept": kept_BD,
        "p_count": count_B,
        "p_next": next_B,
        "p_done": selection.done(4),
        "NODES": triton.next_power_of_2(nodes),
        "DEPTH": kept_BD.shape[1],
        "SAMPLED": sampled,
    }
    launches = [*selection.borders(), selection.draws(None, None, 0)]
    launches.append(selection.launch(lookup_kernel, batch * nodes, **own))
    if sampled:
        programs = batch * len(tree.families) * blocks
        launches += [
            selection.launch(residual_kernel, programs, i_step=step, **own) for step in range(tree.width - 1)
        ]
    launches.append(selection.launch(accept_kernel, batch, **own))
    # Left to itself the assembler stops at 128 registers for sm_80, and keeps 16 bytes elsewhere.
    launches.append(selection.launch(next_kernel, batch * blocks, max_registers=168, **own))
    return launches
