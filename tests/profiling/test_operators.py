"""Bytes and FLOPs of PyTorch operators, against arithmetic done by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_eff.profiling.operators import Cost, CountOperators, Key, Total

B, C, M = 6, 8, 16
FLOAT = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(C, M)
        self.down = nn.Linear(M, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.relu(self.up(x)))
        return out


def counted(call: Any, root: nn.Module | None = None, **settings: Any) -> dict[Key, Total]:
    with CountOperators(root or nn.Identity(), **settings) as counter:
        call()
    return counter.totals


def moved(call: Any) -> tuple[int, int]:
    """Bytes read and written of all operators together."""
    totals = counted(call).values()
    return sum(total.read_bytes for total in totals), sum(total.written_bytes for total in totals)


def test_a_training_step_by_module_and_phase() -> None:
    torch.manual_seed(0)
    net, x = Net(), torch.randn(B, C)
    totals = counted(lambda: F.mse_loss(net(x), x).backward(), net)
    found = {key: (total.read_bytes, total.written_bytes, total.flops) for key, total in totals.items()}
    up, down, hidden, io = FLOAT * C * M, FLOAT * C * M, FLOAT * B * M, FLOAT * B * C
    product = 2 * B * C * M
    assert found[Key("up", "forward", "aten::addmm")] == (FLOAT * M + io + up, hidden, product)
    assert found[Key("Net", "forward", "aten::relu")] == (hidden, hidden, 0)
    assert found[Key("down", "forward", "aten::mm")] == (hidden + down, io, product)
    assert found[Key("", "forward", "aten::mse_loss")] == (2 * io, FLOAT, 0)
    # dW and dX of the second matrix; of the first only dW, its input needs no gradient.
    assert found[Key("down", "backward", "aten::mm")] == (
        (io + hidden) + (io + down),
        down + hidden,
        2 * product,
    )
    assert found[Key("up", "backward", "aten::mm")] == (hidden + io, up, product)
    assert found[Key("up", "backward", "aten::sum")] == (hidden, FLOAT * M, 0)
    assert found[Key("Net", "backward", "aten::threshold_backward")] == (2 * hidden, hidden, 0)
    assert found[Key("", "backward", "aten::mse_loss_backward")] == (FLOAT + 2 * io, io, 0)


def test_gradients_add_up_where_their_parameter_is() -> None:
    net, x = Net(), torch.randn(B, C)
    net(x).sum().backward()
    totals = counted(lambda: net(x).sum().backward(), net)
    size = FLOAT * C * M
    assert totals[Key("down", "backward", "aten::add_")].read_bytes == 2 * size
    assert totals[Key("down", "backward", "aten::add_")].written_bytes == size


def test_recomputation_is_its_own_phase() -> None:
    net, x = Net(), torch.randn(B, C, requires_grad=True)
    totals = counted(lambda: checkpoint(net, x, use_reentrant=False).sum().backward(), net)
    forward, again = (totals[Key("up", phase, "aten::addmm")] for phase in ("forward", "recompute"))
    assert (again.read_bytes, again.flops) == (forward.read_bytes, forward.flops)
    assert Key("up", "backward", "aten::mm") in totals


@pytest.mark.parametrize("closure", [False, True])
def test_the_update_is_told_from_the_rest_of_a_step(closure: bool) -> None:
    net, x = Net(), torch.randn(B, C)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, foreach=False)

    def compute() -> Tensor:
        optimizer.zero_grad()
        loss = net(x).square().sum()
        loss.backward()
        return loss

    def step() -> None:
        if closure:
            optimizer.step(compute)
        else:
            compute()
            optimizer.step()

    totals = counted(step, net)
    update = totals[Key("", "optimizer", "aten::add_")]
    parameters = FLOAT * (2 * C * M + M)
    assert (update.calls, update.read_bytes, update.written_bytes) == (3, 2 * parameters, parameters)
    assert [key.phase for key in totals if key.operator == "aten::pow"] == ["forward", "backward"]
    assert {key.operator for key in totals if key.phase == "optimizer"} == {"aten::add_"}


def test_a_fused_optimizer_reads_and_writes_its_state() -> None:
    weight = nn.Parameter(torch.zeros(100))
    weight.grad = torch.ones(100)
    optimizer = torch.optim.AdamW([weight], fused=True)
    optimizer.step()  # makes the state
    (total,) = (
        total for key, total in counted(optimizer.step).items() if key.operator == "aten::_fused_adamw_"
    )
    assert (total.read_bytes, total.written_bytes) == (4 * 400 + 4, 3 * 400)


def test_what_single_operators_move() -> None:
    x, row = torch.randn(10, 4), torch.randn(4)
    size = FLOAT * 40
    assert moved(lambda: x.t()) == (0, 0)
    assert moved(lambda: x[2:].unsqueeze(0).expand(3, 8, 4)) == (0, 0)
    assert moved(lambda: torch.empty(100)) == (0, 0)
    assert moved(lambda: torch.zeros(100)) == (0, 400)
    assert moved(lambda: x * x) == (size, size)
    assert moved(lambda: x + row.expand(10, 4)) == (size + 16, size)
    assert moved(lambda: x[:, 1] + 1) == (FLOAT * 10, FLOAT * 10)
    assert moved(lambda: x.add_(1)) == (size, size)
    assert moved(lambda: x.copy_(row.expand(10, 4))) == (16, size)
    assert moved(lambda: x.zero_()) == (0, size)
    assert moved(lambda: torch.add(x, 1, out=torch.empty(10, 4))) == (size, size)
    assert moved(lambda: x.half()) == (size, size // 2)
    assert moved(lambda: x.as_strided((9, 8), (4, 1)) + 1) == (size, FLOAT * 72)  # overlapping windows


def test_look_ups_touch_the_rows_they_look_up() -> None:
    table, tokens = torch.randn(1000, 4), torch.tensor([1, 5, 5])
    rows = FLOAT * 3 * 4
    assert moved(lambda: F.embedding(tokens, table)) == (24 + rows, rows)
    assert moved(lambda: table[tokens]) == (24 + rows, rows)
    cache, new = torch.zeros(1000, 4), torch.randn(3, 4)
    assert moved(lambda: cache.index_copy_(0, tokens, new)) == (24 + rows, rows)


def test_a_product_in_place_costs_what_the_other_does() -> None:
    out, a, b = torch.zeros(3, 5), torch.ones(3, 4), torch.ones(4, 5)
    (total,) = counted(lambda: out.addmm_(a, b)).values()
    assert total.flops == 2 * 3 * 4 * 5
    assert (total.read_bytes, total.written_bytes) == (4 * (15 + 12 + 20), 4 * 15)


def test_attention_flops() -> None:
    q = torch.randn(2, 3, 16, 8, requires_grad=True)
    totals = counted(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward())
    flops = {key.phase: total.flops for key, total in totals.items() if "scaled_dot" in key.operator}
    forward = 4 * 2 * 3 * 16 * 16 * 8
    assert flops == {"forward": forward, "backward": forward * 5 // 2}


def test_an_operator_with_its_own_model() -> None:
    def model(args: Any, kwargs: Any, out: Tensor) -> Cost:
        return Cost(1, out.numel(), 7, "a test's")

    x = torch.randn(5)
    (total,) = counted(lambda: torch.relu(x), models={"aten::relu": model}).values()
    assert (total.model, total.read_bytes, total.written_bytes, total.flops) == ("a test's", 1, 5, 7)


def test_modules_compiled_in_place_are_followed_and_not_compiled_anew() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = Net(), nn.Linear(C, C)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.inner(x))
            return out

    net, x = Outer(), torch.randn(B, C)
    graphs = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    net.inner.compile(backend=backend)
    net(x).sum().backward()
    totals = counted(lambda: net(x).sum().backward(), net)
    places = {(key.module, key.phase) for key in totals if key.operator in ("aten::mm", "aten::addmm")}
    assert places == {(name, phase) for name in ("inner", "last") for phase in ("forward", "backward")}
    assert totals[Key("inner", "backward", "aten::add_")].calls == 3  # gradients added to those there were
    assert not net.inner.up._forward_hooks
    net(x)
    assert graphs == 1


def test_it_adds_up_and_leaves_nothing_behind() -> None:
    net, x = Net(), torch.randn(B, C)
    counter = CountOperators(net)
    for _ in range(3):
        with counter:
            net(x)
        net(x)
    assert counter.totals[Key("up", "forward", "aten::addmm")].calls == 3
    assert not net.up._forward_hooks
    assert not net.up._forward_pre_hooks
