"""Which parameters decay, and Muon for matrices with AdamW for the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from lit_eff.models.transformer import Transformer

# Parameter groups carry their role, so that an optimizer may treat roles differently.
MATRIX, OUTPUT, EMBEDDING, VECTOR = "matrix", "output", "embedding", "vector"


def parameter_groups(model: Transformer) -> list[dict[str, Any]]:
    """The trainable parameters by role, each once, as torch optimizers take them.

    ``matrix`` (inside layers and heads) and ``output`` (an output matrix of its own) take the optimizer's
    weight decay; ``embedding`` (an output matrix tied to it included) and ``vector`` (norms, biases) none.
    """
    outputs = {id(model.head_weight(index)) for index in range(len(model.config.exit_layers))}
    if model.exit_classifier is not None:
        outputs.add(id(model.exit_classifier.weight))
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    roles: dict[str, list[nn.Parameter]] = {role: [] for role in (MATRIX, OUTPUT, EMBEDDING, VECTOR)}
    for parameter in model.parameters():  # a shared parameter comes once
        if not parameter.requires_grad:
            continue
        if id(parameter) in embeddings:
            roles[EMBEDDING].append(parameter)
        elif parameter.ndim < 2:
            roles[VECTOR].append(parameter)
        else:
            roles[OUTPUT if id(parameter) in outputs else MATRIX].append(parameter)
    no_decay = {EMBEDDING: {"weight_decay": 0.0}, VECTOR: {"weight_decay": 0.0}}
    return [
        {"params": parameters, "role": role, **no_decay.get(role, {})}
        for role, parameters in roles.items()
        if parameters
    ]


class MuonAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for the matrices inside layers, AdamW for everything else.

    Muon's update is scaled to the root mean square of AdamW's (Liu et al. 2025, "Muon is scalable"), so
    both work with one learning rate and one weight decay, tuned as AdamW's would be.

    Args:
        params: :func:`parameter_groups`; groups without the role ``matrix`` go to AdamW.
        lr: peak learning rate of both.
        weight_decay: decoupled weight decay of both, where the group has none of its own.
        momentum: Muon's.
        betas: AdamW's.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        groups = [entry if isinstance(entry, dict) else {"params": [entry]} for entry in params]
        matrices = [group for group in groups if group.get("role") == MATRIX]
        others = [group for group in groups if group.get("role") != MATRIX]
        # torch's own two optimizers do the work on this one's groups and state: what Lightning, a schedule
        # or a sharded checkpoint sees and saves is a single ordinary optimizer.
        self._parts: list[tuple[bool, Optimizer]] = []
        if matrices:
            muon = torch.optim.Muon(
                matrices, lr, weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append((True, muon))
        if others:
            self._parts.append((False, AdamW(others, lr, betas, weight_decay=weight_decay, fused=True)))
        super().__init__([group for _, part in self._parts for group in part.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of both; ``closure`` runs once, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for is_muon, part in self._parts:
            # Linked anew each time: loading a checkpoint replaces this optimizer's groups and state.
            part.state = self.state
            part.param_groups = [
                group for group in self.param_groups if (group.get("role") == MATRIX) == is_muon
            ]
            part.step()
        return loss
