"""One GPT-2 training job of the comparison, in a process of its own: build, compile, step, time, profile.

A process each keeps memory figures apart and lets compilers run side by side; jobs take turns on the device.
Shapes: B batch, T length, V vocabulary.
"""

from __future__ import annotations

import math
import re
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_eff.bench.gpt2_graph import StepGraph
from lit_eff.errors import UserError, require
from lit_eff.kernels.attention import explain
from lit_eff.models.hf_attention import NAME, register_attention

LEARNING_RATE, WARMUP_STEPS = 6e-4, 20
# Fused attention by the names of its kernels: ours, FlashAttention, cuDNN, memory-efficient. Kernels that the
# compiler generated (triton_...) may carry the operator's name for copies around it, and are left out.
ATTENTION_KERNELS = re.compile(r"^(?!triton_).*(attention_\w*kernel|flash|fmha|sdpa)", re.IGNORECASE)


@dataclass(frozen=True)
class Size:
    """Hugging Face's GPT-2 of some size, and the batch it is trained on: B rows of T tokens."""

    layers: int
    width: int
    heads: int
    batch: int
    length: int = 1024
    vocabulary: int = 50_257

    def flops_per_token(self, parameters: int) -> float:
        """Training operations a token (PaLM, Chowdhery et al. 2022, appendix B): 6 N + 12 L C T."""
        return 6 * parameters + 12 * self.layers * self.width * self.length


SIZES = {
    "small": Size(12, 768, 12, batch=16),
    "medium": Size(24, 1024, 16, batch=8),
    "tiny": Size(2, 64, 2, batch=2, length=64, vocabulary=512),
}


def attend_unmasked(module: Any, query: Tensor, key: Tensor, value: Tensor, _: Any, **options: Any) -> Any:
    """Hugging Face's SDPA without the mask tensor that transformers makes whenever it is traced."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    return sdpa_attention_forward(module, query, key, value, None, **options)


def attend_not(module: Any, query: Tensor, key: Tensor, value_BHTD: Tensor, _: Any, **__: Any) -> Any:
    """No attention at all, the values go through: what a step would take were attention free."""
    return value_BHTD.transpose(1, 2), None


def register(attention: str) -> None:
    """Make transformers know ``attention``: eager and sdpa are its own."""
    from transformers import AttentionInterface

    if attention == NAME:
        register_attention()
    AttentionInterface.register("sdpa_unmasked", attend_unmasked)
    AttentionInterface.register("none", attend_not)


def hugging_face_model(size: Size, attention: str, seed: int) -> nn.Module:
    """GPT2LMHeadModel without dropout; ``attention`` changes nothing in its random weights."""
    transformers = require("transformers", "hf")
    register(attention)
    config = transformers.GPT2Config(
        vocab_size=size.vocabulary,
        n_positions=size.length,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.loss_type = "ForCausalLM"  # type: ignore[assignment]  # the default, but its warning breaks the graph
    return model


class TrainingJob:
    """GPT-2 under bf16 autocast with fused AdamW; only ``attention``, ``compiled`` and ``captured``, whether
    steps are a CUDA graph, differ between jobs.
    """

    precision = torch.bfloat16

    def __init__(
        self, size: Size, attention: str, compiled: bool, captured: bool, device: str, seed: int
    ) -> None:
        self.size, self.attention, self.compiled, self.captured = size, attention, compiled, captured
        self.device = torch.device(device)
        if captured and self.device.type != "cuda":
            raise UserError("a step as a CUDA graph needs an NVIDIA GPU")
        self._graph: StepGraph | None = None
        self.model = self.build(hugging_face_model(size, attention, seed)).to(device).train()
        self.initial = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        self.forward = self.make_forward()
        self._new_optimizer()
        generator = torch.Generator().manual_seed(seed)
        shape = (size.batch, size.length)
        self.noise_BT = torch.randint(size.vocabulary, shape, generator=generator).to(device)

    def build(self, theirs: nn.Module) -> nn.Module:
        """The model to train, from Hugging Face's with the initial weights."""
        return theirs

    def make_forward(self) -> Callable[..., Any]:
        """What :meth:`loss` calls: the model, compiled or not."""
        return torch.compile(self.model) if self.compiled else self.model

    def loss(self, tokens_BT: Tensor) -> Tensor:
        """Mean cross-entropy of each token given those before it in its row."""
        loss: Tensor = self.forward(input_ids=tokens_BT, labels=tokens_BT).loss
        return loss

    def _new_optimizer(self) -> None:
        self._graph = None  # was captured with the last one
        rate: Any = torch.tensor(LEARNING_RATE, device=self.device) if self.captured else LEARNING_RATE
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            rate,
            (0.9, 0.95),
            weight_decay=0.1,
            fused=self.device.type == "cuda",
            capturable=self.captured,
        )

    def _restart(self) -> None:
        """From the initial weights on. What a graph was captured from stays, with other contents."""
        self._new_optimizer()
        if self.captured:
            self.step(self.noise_BT)
        self.model.load_state_dict(self.initial)
        for state in self.optimizer.state.values():
            for tensor in state.values():
                tensor.zero_()

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, self.precision)

    def step(self, tokens_BT: Tensor) -> Tensor:
        """One optimizer step; the loss, still on the device."""
        if not self.captured:
            return self._step(tokens_BT)
        if self._graph is None:
            self._graph = StepGraph(self._step, self.noise_BT)
        return self._graph(tokens_BT)

    def _step(self, tokens_BT: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            loss = self.loss(tokens_BT)
        torch.autograd.backward(loss)
        self.optimizer.step()
        return loss.detach()

    def prepare(self) -> dict[str, Any]:
        """Compile, by two steps; then :meth:`facts`."""
        for _ in range(2):
            self.step(self.noise_BT)
        self._finish()
        return self.facts()

    def facts(self) -> dict[str, Any]:
        """How often the compiled graph broke, which attention runs, and the model's size."""
        breaks = torch._dynamo.utils.counters["graph_break"]
        parameters = self.parameters()
        return {
            "attention_path": self._path(),
            "graph_breaks": sum(breaks.values()) if self.compiled else None,
            "parameters": parameters,
            "flops_per_token": self.size.flops_per_token(parameters),
        }

    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def _path(self) -> str | None:
        """Which of our kernels run, and why; None where the attention is not ours."""
        if self.attention != NAME:
            return None
        size = self.size
        shape = (size.batch, size.length, size.heads, size.width // size.heads)
        q_BTHD = torch.empty(shape, dtype=self.precision, device=self.device)
        return str(explain(q_BTHD, q_BTHD, q_BTHD, causal=True, backward=True))

    def time(self, steps: int) -> dict[str, Any]:
        """Milliseconds a step, after one that is not timed, and the greatest memory in use meanwhile."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self.step(self.noise_BT)
        self._wait()
        began = time.perf_counter()
        for _ in range(steps):
            self.step(self.noise_BT)
        self._wait()
        milliseconds = (time.perf_counter() - began) * 1e3 / steps
        peak = torch.cuda.max_memory_allocated() if self.device.type == "cuda" else None
        self._finish()
        return {"milliseconds": milliseconds, "peak_memory_bytes": peak}

    def curve(self, rows_NT: NDArray[np.int32]) -> list[float]:
        """Losses from the initial weights on, B of the rows a step."""
        self._restart()
        losses = []
        for index, tokens_BT in enumerate(
            torch.split(torch.from_numpy(rows_NT).to(torch.int64), self.size.batch)
        ):
            rate = LEARNING_RATE * min(1.0, (index + 1) / WARMUP_STEPS)
            for group in self.optimizer.param_groups:
                if self.captured:
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            losses.append(self.step(tokens_BT.to(self.device)))
        values = [float(loss) for loss in losses]
        self._finish()
        return values

    def profile(self, steps: int) -> dict[str, Any]:
        """Kernel milliseconds a step by torch.profiler: all, and fused attention's by name."""
        if self.device.type != "cuda":
            return {"unavailable": "kernel times need an NVIDIA GPU"}
        from torch.profiler import ProfilerActivity, profile

        self.step(self.noise_BT)  # captures, if that is what steps are
        self._wait()
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(steps):
                self.step(self.noise_BT)
            self._wait()
        kernels = {
            event.key: event.self_device_time_total / 1e3 / steps
            for event in profiler.key_averages()
            if event.self_device_time_total > 0
        }
        attention = {name: value for name, value in kernels.items() if ATTENTION_KERNELS.search(name)}
        self._finish()
        return {
            "kernel_milliseconds": math.fsum(kernels.values()),
            "attention_milliseconds": math.fsum(attention.values()) if attention else None,
            "attention_kernels": {name[:120]: attention[name] for name in sorted(attention)},
        }

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _finish(self) -> None:
        """Leave the device to the other jobs: keep no more memory than weights and optimizer state."""
        self._wait()
        self._graph = None
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def serve(connection: Connection, turns: Sequence[Any], job: tuple[Any, ...]) -> None:
    """Run a job's methods as asked over ``connection``: (method, *arguments) in, (value, fault) out.

    ``job`` is its class and that one's arguments; ``turns`` are locks and semaphores over processes, held
    while it compiles and takes its first steps.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the asker ends the jobs
    try:
        with ExitStack() as held:
            for turn in turns:
                held.enter_context(turn)
            make, *arguments = job
            training = make(*arguments)
            connection.send((training.prepare(), None))
        while (request := connection.recv()) is not None:
            method, *arguments = request
            connection.send((getattr(training, method)(*arguments), None))
    except EOFError:
        return
    except Exception as error:  # whatever it is, the other jobs go on and the report names it
        last = (str(error).strip() or type(error).__name__).splitlines()[0]
        connection.send((None, f"{type(error).__name__}: {last}"))
