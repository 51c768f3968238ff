"""The public class: a step whose tensors are checked and whose launches are prepared once, to be run often.

Shapes: L layers, C model dim, H query heads, K kv heads, D head dim, M MLP inner width, V vocabulary, N rows,
B sequences, S cache slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from lit_eff.errors import UserError
from lit_eff.kernels.confidence.reference import NEVER, ExitConfidence, exit_confidence_reference
from lit_eff.kernels.decode_step.arguments import Rows, Shape, Weights
from lit_eff.kernels.decode_step.plan import Plan, check_shape, plan_of
from lit_eff.kernels.decode_step.reference import decode_step_reference
from lit_eff.kernels.device import TRITON_INSTALLED, capability_of, multiprocessors
from lit_eff.kernels.linear.interface import DTYPES, check_beside, check_vector, runs_products
from lit_eff.kernels.linear.reference import Norm
from lit_eff.profiling.launch import Launch

if TRITON_INSTALLED:
    from lit_eff.kernels.confidence import operator as confidence
    from lit_eff.kernels.decode_step.call import PHASES, cache_of, new_work, step_launches
    from lit_eff.kernels.linear.call import Product

NAME = "decode_step"
MEASURE = "max_probability"  # no threshold is set, so none is compared


class DecodeStep:
    """All layers of a Llama-type transformer on N rows, then the output head: the next token of each row.

    A row is a token at a position of a sequence, which has keys and values of all positions before. Rows of
    one sequence see each other as far as they come later. A row's bits depend on nothing but the row: it may
    come alone, among others of its sequence that a draft proposed, or in a batch. For inference only.

    On a GPU the layers are one launch, or one a phase (``plan.form``), and the head two. Nothing is allocated
    by a run and nothing waits for the device, so runs can be captured in a CUDA graph. On a CPU the plain
    reference runs instead, which promises no bits.

    Args:
        shape: the model's sizes.
        weights: float16, bfloat16 or float32, contiguous; see `Weights`. Angles are float32.
        output_VC: the output matrix; the embedding's where the two are tied.
        k_LBSKD, v_LBSKD: the cache, in the weights' dtype, which runs write. Slots past a row's position may
            hold anything but, where the reference runs, NaN.
        rows: N.
        bias, softcap: of the head, as in `exit_confidence`.
        plan: how the work is cut; by default `default_plan`.
        advance: what every run adds to the positions: 1 to decode, 0 to verify.
        traced: whether runs note clocks in `trace`, int64 (2 + 2 barriers, programs), in the persistent form.

    Attributes:
        row: the rows' tokens, positions and sequences, and all tokens so far by sequence and slot, (B, S). A
            run replaces each token by the one that follows it.
        hidden_NC: hidden states after the last layer.
        found: what the head says of each row; ``found.token_N`` is ``row.token``.
        launches: what a run launches; empty where the reference runs.

    Raises:
        UserError: naming the argument that does not fit, before anything runs.
    """

    def __init__(
        self,
        shape: Shape,
        weights: Weights,
        output_VC: Tensor,
        k_LBSKD: Tensor,
        v_LBSKD: Tensor,
        *,
        rows: int,
        bias: Tensor | None = None,
        softcap: float | None = None,
        plan: Plan | None = None,
        advance: int = 1,
        traced: bool = False,
    ) -> None:
        if rows < 1:
            raise UserError(f"{NAME}: {rows} rows; expected at least 1")
        check_shape(shape.heads, shape.kv_heads, shape.head_dim, shape.channels, shape.inner)
        check_tensors(shape, weights, output_VC, k_LBSKD, v_LBSKD)
        check_vector(NAME, "bias", bias, shape.vocabulary, output_VC)
        if softcap is not None and not 0 < softcap < float("inf"):
            raise UserError(f"{NAME}: softcap {softcap} must be positive and finite, or None for no cap")
        device = output_VC.device
        self.shape, self.weights, self.output_VC = shape, weights, output_VC
        self.k_LBSKD, self.v_LBSKD, self.rows, self.advance = k_LBSKD, v_LBSKD, rows, advance
        self._bias, self._softcap = bias, softcap
        self._norm = Norm(weights.gains[-1], None, shape.epsilon)
        self.plan = default_plan(shape, device) if plan is None else plan
        if self.plan.form == "persistent" and device.type != "cuda":
            raise UserError(f"{NAME}: the persistent form needs a GPU, not {device.type}; choose 'launches'")
        sequences, slots = k_LBSKD.shape[1:3]
        place_N = torch.zeros(rows, dtype=torch.int32, device=device)
        history_BS = torch.full((sequences, slots), -1, dtype=torch.int64, device=device)
        self.row = Rows(place_N.long(), place_N, place_N.clone(), history_BS)
        probability_N, gap_N, entropy_N, lse_N = (place_N.float() for _ in range(4))
        self.found = ExitConfidence(self.row.token, probability_N, gap_N, entropy_N, lse_N, place_N.bool())
        self.trace: Tensor | None = None
        self.launches: list[Launch] = []
        if runs_products(NAME, output_VC):
            self._prepare(traced)
        else:
            self.hidden_NC = output_VC.new_zeros(rows, shape.channels)

    def _prepare(self, traced: bool) -> None:
        device, plan = self.output_VC.device, self.plan
        work = new_work(self.shape, plan, self.rows, self.k_LBSKD.shape[2], self.output_VC)
        self.hidden_NC = work.hidden
        if traced and plan.form == "persistent":
            events = 2 + 2 * len(PHASES) * self.shape.layers
            self.trace = torch.zeros(events, plan.programs, dtype=torch.int64, device=device)
        layers = step_launches(
            self.shape,
            plan,
            self.weights,
            self.row,
            cache_of(self.k_LBSKD, self.v_LBSKD),
            work,
            self.rows,
            (0, self.shape.layers),
            capability_of(device),
            self.advance,
            self.trace,
        )
        product = Product(work.normed, self.output_VC)
        limit_N = torch.full((self.rows,), NEVER, dtype=torch.float32, device=device)
        head = confidence.launches(product, self._bias, self._softcap, limit_N, MEASURE, self.found)
        self.launches = [*layers, *head]

    def place(self, tokens: Sequence[int], positions: Sequence[int], sequences: Sequence[int]) -> None:
        """Say what the rows are; each sequence of N numbers.

        Raises:
            UserError: for another number of rows, or what is outside the vocabulary or the cache.
        """
        count, slots = self.row.history.shape
        for name, values, limit in (
            ("tokens", tokens, self.shape.vocabulary),
            ("positions", positions, slots),
            ("sequences", sequences, count),
        ):
            if len(values) != self.rows:
                raise UserError(f"{NAME}: {len(values)} {name} for {self.rows} rows")
            if wrong := [value for value in values if not 0 <= value < limit]:
                raise UserError(f"{NAME}: {name} hold {wrong[0]}; expected 0 to {limit - 1}")
        for tensor, values in zip(self.row[:3], (tokens, positions, sequences), strict=True):
            tensor.copy_(torch.tensor(values, dtype=tensor.dtype))

    def run(self) -> None:
        """One step. The caller sees to it that positions stay inside the cache."""
        if not self.launches:
            self._run_reference()
            return
        device = self.output_VC.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            for launch in self.launches:
                launch.run()

    def _run_reference(self) -> None:
        token_N, position_N, sequence_N, history_BS = self.row
        place = position_N.long(), sequence_N.long()
        hidden_NC = decode_step_reference(
            self.weights,
            token_N,
            *place,
            self.k_LBSKD,
            self.v_LBSKD,
            self.shape.heads,
            self.shape.epsilon,
            (0, self.shape.layers),
        )
        self.hidden_NC.copy_(hidden_NC)
        history_BS[place[1], place[0]] = token_N
        found = exit_confidence_reference(
            hidden_NC, self.output_VC, bias=self._bias, norm=self._norm, softcap=self._softcap
        )
        for mine, new in zip(self.found, found, strict=True):
            mine.copy_(new)
        position_N += self.advance


def default_plan(shape: Shape, device: torch.device) -> Plan:
    """Persistent on a GPU, a program a multiprocessor; elsewhere launches of a few programs."""
    processors, capability = multiprocessors(device, otherwise=4), capability_of(device)
    plan = plan_of(shape.qkv // 2, shape.channels, shape.inner, processors, capability)
    return plan if device.type == "cuda" else replace(plan, form="launches")


def check_tensors(
    shape: Shape, weights: Weights, output_VC: Tensor, k_LBSKD: Tensor, v_LBSKD: Tensor
) -> None:
    """Shapes, dtypes, devices and strides of what a step reads."""
    layers, channels = shape.layers, shape.channels
    if k_LBSKD.ndim != 5:
        raise UserError(f"{NAME}: keys are {tuple(k_LBSKD.shape)}; expected (L, B, S, K, D)")
    sequences, slots = k_LBSKD.shape[1:3]
    if output_VC.dtype not in DTYPES:
        raise UserError(f"{NAME}: dtype {output_VC.dtype} is not float16, bfloat16 or float32")
    matrices = {
        "embedding": (shape.vocabulary, channels),
        "gains": (2 * layers + 1, channels),
        "qkv": (layers, shape.qkv, channels),
        "output": (layers, channels, shape.attended),
        "gate_up": (layers, 2 * shape.inner, channels),
        "down": (layers, channels, shape.inner),
    }
    angles = dict.fromkeys(("cosines", "sines"), (slots, shape.head_dim // 2))
    check_beside(NAME, "the output matrix", output_VC, (shape.vocabulary, channels), output_VC)
    for name, size in (matrices | angles).items():
        tensor = getattr(weights, name)
        check_beside(NAME, name, tensor, size, output_VC)
        wanted = torch.float32 if name in angles else output_VC.dtype
        if tensor.dtype != wanted or not tensor.is_contiguous():
            how = "" if tensor.is_contiguous() else " that is not contiguous"
            raise UserError(f"{NAME}: {name} is {tensor.dtype}{how}; expected {wanted}, contiguous")
    for name, tensor in (("keys", k_LBSKD), ("values", v_LBSKD)):
        size = (layers, sequences, slots, shape.kv_heads, shape.head_dim)
        check_beside(NAME, name, tensor, size, output_VC)
    # One store serves queries, keys and values, and slots are read ahead in one piece.
    for name, tensor in (("keys", k_LBSKD), ("values", v_LBSKD)):
        if tensor.dtype != output_VC.dtype:
            raise UserError(f"{NAME}: {name} are {tensor.dtype}; expected the weights' {output_VC.dtype}")
    slot = (shape.kv_heads * shape.head_dim, shape.head_dim, 1)
    if k_LBSKD.stride() != v_LBSKD.stride() or k_LBSKD.stride()[2:] != slot:
        raise UserError(f"{NAME}: keys and values must have one layout, the slots of a sequence side by side")
