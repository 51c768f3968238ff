"""``lit-eff bench decode_step --check``: the step against its reference, its rows' bits, and its budgets.

With a GPU: both forms in 16-bit dtypes. Without: launch by launch in Triton's interpreter, which takes no
bfloat16.

Shapes: L layers, B sequences, S cache slots, K kv heads, D head dim, C model dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

from lit_eff.bench.budgets import TARGETS, resource_faults
from lit_eff.bench.checks import Outcome, outcome_of, print_failure, report, run_jobs
from lit_eff.errors import UserError
from lit_eff.profiling.launch import Launch

# Bytes a thread: what is kept across a barrier or a whole phase, not what a loop needs.
SPILLS = {"decode_step_kernel": 64}
SLOTS, START = 600, 510  # positions that follow cross a border of attention's chunks
# Model dim, heads, kv heads, head dim, MLP inner width.
SIZES = {"grouped heads": (96, 4, 2, 16, 112), "odd heads": (80, 3, 1, 32, 48)}


@dataclass(frozen=True)
class StepCheck:
    """Three rows of one sequence together, in a batch, and one by one: precision, and that bits agree."""

    size: str
    dtype: str
    form: Any
    device: str

    compiles = False

    @property
    def name(self) -> str:
        return f"step, {self.size}, {self.form}, {self.dtype}"

    @property
    def interprets(self) -> bool:
        return self.device == "cpu"

    def run(self) -> Outcome:
        return outcome_of(self.name, self._faults)

    def _faults(self) -> list[str]:
        import torch

        from lit_eff.bench.attention_rule import compare, same_bits
        from lit_eff.bench.interpreted import rows_alike
        from lit_eff.kernels.decode_step import Weights, decode_step_reference, default_plan
        from lit_eff.models.cache import KVCache
        from lit_eff.models.config import ModelConfig
        from lit_eff.models.packed import PackedModel
        from lit_eff.models.transformer import Transformer

        channels, heads, kv_heads, head_dim, inner = SIZES[self.size]
        dtype, device = getattr(torch, self.dtype), torch.device(self.device)
        config = ModelConfig(
            50, 2, channels, heads, kv_heads, head_dim, inner, context=SLOTS, init_std=channels**-0.5
        )
        torch.manual_seed(0)
        packed = PackedModel(Transformer(config).to(device, dtype).eval(), SLOTS)
        shape, weights = packed.shape, packed.weights
        plan = replace(default_plan(shape, device), form=self.form)
        tokens, positions, sequences = [5, 6, 7], list(range(START, START + 3)), [1] * 3
        others = 17

        def cache() -> KVCache:
            result = KVCache(config, 3, SLOTS, dtype=dtype, device=device)
            for seed, tensor in enumerate((result.k, result.v)):
                drawn = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
                tensor.copy_(drawn)
            return result

        def run(*rows: list[int], kept: KVCache) -> torch.Tensor:
            step = packed.step(kept, len(rows[0]), plan=plan)
            step.place(*rows)
            step.run()
            return step.hidden_NC

        def reference(wide: torch.dtype) -> torch.Tensor:
            kept = cache()
            angles = torch.promote_types(wide, torch.float32)
            token_N, position_N, sequence_N = (
                torch.tensor(row, device=device) for row in (tokens, positions, sequences)
            )
            return decode_step_reference(
                Weights(*(x.to(wide) for x in weights[:6]), *(x.to(angles) for x in weights[6:])),
                token_N, position_N, sequence_N, kept.k.to(wide), kept.v.to(wide), heads, shape.epsilon,
                (0, shape.layers),
            )  # fmt: skip

        with torch.inference_mode(), rows_alike() if self.interprets else nullcontext():
            together, alone = cache(), cache()
            verified = run(tokens, positions, sequences, kept=together)
            single = [
                run([token], [position], [1], kept=alone)
                for token, position in zip(tokens, positions, strict=True)
            ]
            batch = run(
                [9] * others + tokens,
                [2] * others + positions,
                [0] * others + sequences,
                kept=cache(),
            )
            faults = compare("hidden", verified, reference(dtype), reference(torch.float64), dtype)
        if not same_bits([torch.cat(single), alone.k, alone.v], [verified, together.k, together.v]):
            faults.append("rows one by one have other bits than rows together")
        if not same_bits([batch[others:]], [verified]):
            faults.append("rows in a batch have other bits than rows alone")
        return faults


@dataclass(frozen=True)
class StepBudget:
    """The kernel at a model's widths, in one form, compiled for one target."""

    capability: int
    model: str
    form: Any

    compiles = True
    interprets = False

    @property
    def name(self) -> str:
        return f"budget, step, sm_{self.capability}, {self.model}, {self.form}"

    def run(self) -> Outcome:
        return Outcome(self.name, resource_faults(self._launches, self.capability, SPILLS))

    def _launches(self) -> list[Launch]:
        """Of one layer; a persistent step is one, whatever the layers."""
        import torch

        from lit_eff.bench.step_cells import MODELS
        from lit_eff.kernels.decode_step.arguments import Rows, Shape, Weights
        from lit_eff.kernels.decode_step.call import cache_of, new_work, step_launches
        from lit_eff.kernels.decode_step.plan import plan_of

        config, rows = MODELS[self.model], 8
        shape = Shape(
            1, config.model_dim, config.heads, config.n_kv_heads, config.head_size, config.mlp_size,
            config.vocab_size,
        )  # fmt: skip
        processors = {80: 58, 90: 132}[self.capability]  # the L4's and the H100's
        plan = plan_of(shape.qkv // 2, shape.channels, shape.inner, processors, self.capability)
        plan = replace(plan, form=self.form)
        with torch.device("meta"):

            def wide(*sizes: int) -> torch.Tensor:
                return torch.empty(sizes, dtype=torch.bfloat16)

            angles = torch.empty(SLOTS, shape.head_dim // 2)
            weights = Weights(
                wide(shape.vocabulary, shape.channels),
                wide(3, shape.channels),
                wide(1, shape.qkv, shape.channels),
                wide(1, shape.channels, shape.attended),
                wide(1, 2 * shape.inner, shape.channels),
                wide(1, shape.channels, shape.inner),
                angles,
                angles,
            )
            place = torch.empty(rows, dtype=torch.int32)
            row = Rows(place.long(), place, place, torch.empty(rows, SLOTS, dtype=torch.int64))
            kept = wide(1, rows, SLOTS, shape.kv_heads, shape.head_dim)
            work = new_work(shape, plan, rows, SLOTS, weights.embedding)
            return step_launches(
                shape, plan, weights, row, cache_of(kept, kept), work, rows, (0, 1), self.capability
            )


def checks_here(texts: Sequence[str]) -> list[StepCheck | StepBudget]:
    """What this machine can check, narrowed to names that contain one of ``texts``.

    Raises:
        UserError: no name contains them.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    found: list[StepCheck | StepBudget] = [
        StepCheck(size, dtype, form, "cuda" if on_gpu else "cpu")
        for size in SIZES
        for dtype in (("float16", "bfloat16") if on_gpu else ("float32", "float16"))
        for form in (("persistent", "launches") if on_gpu else ("launches",))
    ]
    found += [
        StepBudget(capability, model, form)
        for capability in TARGETS
        for model in ("1.1B", "135M")
        for form in ("persistent", "launches")
    ]
    chosen = [each for each in found if not texts or any(text in each.name for text in texts)]
    if not chosen:
        raise UserError(f"--cells {' '.join(texts)!r} is in no check's name (such as {found[0].name!r})")
    return chosen


def run_checks(texts: Sequence[str], processes: int) -> int:
    """Run, print and return the exit code: 1 if anything failed."""
    found = checks_here(texts)
    return report(found, run_jobs(found, processes, print_failure))
