"""A few launches of every kernel, to be run under compute-sanitizer by `test_sanitizer`.

Inputs are drawn on the CPU: next to nothing but our kernels runs. Prints the paths that were taken.
"""

from __future__ import annotations

import sys

import torch

from lit_eff.errors import UserError
from lit_eff.kernels.attention import attention, attention_varlen
from lit_eff.kernels.attention.paths import use_path
from lit_eff.kernels.attention.with_cache import attention_with_cache
from lit_eff.kernels.cross_entropy import multi_exit_cross_entropy
from lit_eff.kernels.linear import Norm
from lit_eff.kernels.propagate import propagate
from lit_eff.kernels.rope import rope_cache_write, rotary_tables
from lit_eff.kernels.sampling import Tree, accept_tree, processed_logits, sample
from lit_eff.kernels.swiglu import swiglu


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).bfloat16().cuda().requires_grad_()


def training(path: str, head_dim: int) -> None:
    """Ragged lengths, groups, both masks; forward and backward."""
    for causal in (False, True):
        q, k, v = draw(2, 130, 4, head_dim), draw(2, 200, 2, head_dim), draw(2, 200, 2, head_dim)
        with use_path(path):
            out = attention(q, k, v, causal=causal)
            assert isinstance(out, torch.Tensor)
            torch.autograd.grad(out, (q, k, v), draw(*q.shape).detach())
    print(path, head_dim, flush=True)


def features() -> None:
    """The portable kernels with documents, and packed sequences with an empty one."""
    q, k, v = (draw(1, 150, 2, 40) for _ in range(3))
    ids = torch.arange(150, dtype=torch.int32)[None].div(40, rounding_mode="floor").cuda()
    out = attention(q, k, v, causal=True, window=33, documents_BT=ids, dropout_p=0.1, seed=1)
    assert isinstance(out, torch.Tensor)
    torch.autograd.grad(out, (q, k, v), draw(*q.shape).detach())
    ends = torch.tensor([0, 70, 70, 150], dtype=torch.int32).cuda()
    out = attention_varlen(q[0], k[0], v[0], ends, ends, max_seqlen_q=80, max_seqlen_k=80)
    assert isinstance(out, torch.Tensor)
    torch.autograd.grad(out, (q, k, v), draw(150, 2, 40).detach())
    print("features", flush=True)


def cached() -> None:
    """A cache, then the same pages shuffled, ragged and with a tree mask."""
    q, cache = draw(3, 5, 8, 128).detach(), draw(3, 2048, 2, 128).detach()
    lengths = torch.tensor([0, 700, 2043], dtype=torch.int32).cuda()
    attention_with_cache(q, cache, cache, lengths)
    table = torch.randperm(3 * 32, dtype=torch.int32).reshape(3, 32).cuda()
    attention_with_cache(
        q,
        cache.view(-1, 64, 2, 128),
        cache.view(-1, 64, 2, 128),
        lengths,
        page_table_BP=table,
        query_lengths_B=torch.tensor([5, 0, 3], dtype=torch.int32).cuda(),
        tree_mask_BTT=torch.ones(3, 5, 5).tril().bool().cuda(),
    )
    print("cached", flush=True)


def losses() -> None:
    """Two exits, a bias, ragged and long rows, several chunks, every term of the loss."""
    for columns in (133, 20_001):
        hidden, matrix, bias = draw(2, 40, 64), draw(columns, 64), draw(columns)
        targets = torch.randint(columns, (40,)).cuda()
        targets[::7] = -100
        found = multi_exit_cross_entropy(
            hidden, matrix, targets, bias_V=bias, chunk=16, label_smoothing=0.1, z_loss=1e-3, softcap=30.0,
            distillation=0.5, temperature=2.0,
        )  # fmt: skip
        torch.autograd.grad(found.loss * 2.0, (hidden, matrix, bias))
    print("losses", flush=True)


def writes() -> None:
    """Rotation with cache write and propagation, into pages, of tokens that fit and of some that do not."""
    lengths = torch.tensor([0, 250, 37], dtype=torch.int32).cuda()
    table = torch.randperm(12, dtype=torch.int32).reshape(3, 4).cuda()
    table[2, 0] = 99
    tables = rotary_tables(torch.ones(20).cuda(), 253)
    caches = [draw(2, 12, 64, 2, 80).detach() for _ in range(2)]
    qkv = draw(3, 9, 9, 80).detach()
    q, k, v = qkv.split([5, 2, 2], dim=2)  # type: ignore[no-untyped-call]
    where = {"tables": tables, "page_table_BP": table}
    rope_cache_write(q, k, v, caches[0][0], caches[1][0], lengths, q_norm_D=k[0, 0, 0], **where)
    hidden, weight, gain = (each.detach() for each in (draw(3, 9, 200), draw(2, 320, 200), draw(2, 80)))
    counts = torch.tensor([9, 9, 4], dtype=torch.int32).cuda()
    propagate(hidden, weight, *caches, lengths, norm=Norm(), query_lengths_B=counts, k_norm_LD=gain, **where)
    print("writes", flush=True)


def activations() -> None:
    gate, up = draw(33, 1000), draw(33, 1000)
    torch.autograd.grad(swiglu(gate, up), (gate, up), draw(33, 1000).detach())
    torch.autograd.grad(swiglu(gate), gate, draw(33, 500).detach())
    print("activations", flush=True)


def sampling() -> None:
    """Every pass of selection, several draws, a bushy tree with and without drafts' logits, penalties."""
    tree = Tree((-1, -1, -1, 0, 0, 1))
    numbers = torch.arange(3).cuda()
    chosen = {
        "seed": numbers,
        "position": numbers,
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.9,
        "min_p": 0.01,
    }
    for vocabulary in (333, 5001):
        target = torch.randn(3, 7, vocabulary).cuda()
        draft = torch.randn(3, 3, vocabulary).cuda()
        drafts = torch.randint(-1, vocabulary, (3, 6)).cuda()
        sample(target[:, 0], **chosen, draws=3)
        accept_tree(target, draft, drafts, tree, **chosen)
        accept_tree(target, None, drafts, tree, **chosen)
        counts = torch.ones(3, vocabulary, dtype=torch.int32).cuda()
        ones = torch.ones(3).cuda()
        processed_logits(target[:, 0], counts=counts, repetition=ones, presence=ones, drafted=drafts)
    print("sampling", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    for head_dim in (64, 128):
        training("portable", head_dim)
        try:
            training("hopper", head_dim)
        except UserError as error:
            print(f"no hopper: {error}", file=sys.stderr)
    features()
    cached()
    losses()
    writes()
    activations()
    sampling()
    torch.cuda.synchronize()
