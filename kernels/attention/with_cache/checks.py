"""What whoever reads or writes a cache refuses about the rows' lengths and pages, in one line each.

Shapes: B batch, T query length, S cache slots, P pages a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lit_eff.errors import UserError

INTEGERS = (torch.int32, torch.int64)

# By argument: sizes (None for the pages of a row) and dtypes.
Wanted = Mapping[str, tuple[tuple[int | None, ...], tuple[torch.dtype, ...]]]


def slots_of(page_size: int, page_table_BP: Tensor | None) -> int:
    """Slots of a row; ``page_size`` is the cache's second dimension, which is S without pages."""
    return page_size if page_table_BP is None else page_size * page_table_BP.shape[1]


def check_rows(name: str, wanted: Wanted, rows: Mapping[str, Tensor | None], device: torch.device) -> None:
    """Shapes, kinds and devices of what comes a row or a head."""
    for what, (shape, dtypes) in wanted.items():
        tensor = rows[what]
        if tensor is None:
            continue
        fits = tensor.ndim == len(shape) and all(
            want in (None, got) for want, got in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            words = ", ".join("pages" if size is None else str(size) for size in shape)
            raise UserError(f"{name}: {what} must have shape ({words}); got {tuple(tensor.shape)}")
        if tensor.dtype not in dtypes:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise UserError(f"{name}: {what} must hold {names}; got {tensor.dtype}")
        if tensor.device != device:
            raise UserError(f"{name}: {what} is on {tensor.device}, the tokens on {device}")


def check_values(
    name: str,
    queries: int,
    lengths_B: Tensor,
    query_lengths_B: Tensor | None,
    bounds: Mapping[str, int],
) -> None:
    """Every row's tokens fit ``bounds``, given by what they are. Reads the lengths on the host."""
    lengths = lengths_B.tolist()
    counts = [queries] * len(lengths) if query_lengths_B is None else query_lengths_B.tolist()
    what, bound = min(bounds.items(), key=lambda item: item[1])
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        if length < 0:
            raise UserError(f"{name}: row {row} has length {length}, which is negative")
        if not 0 <= count <= queries:
            raise UserError(f"{name}: row {row} has {count} of {queries} query tokens")
        if length + count > bound:
            raise UserError(
                f"{name}: row {row} has {length} tokens and {count} query tokens, more than the "
                f"{bound} {what}"
            )


def check_pages(
    name: str,
    queries: int,
    lengths_B: Tensor,
    query_lengths_B: Tensor | None,
    page_table_BP: Tensor,
    pages: int,
    page_size: int,
    window: int | None = None,
) -> None:
    """Every page that a query sees exists. Reads the page table on the host.

    A query that only writes its own slot has a ``window`` of 1.
    """
    count_B = torch.full_like(lengths_B, queries) if query_lengths_B is None else query_lengths_B
    last_B1 = torch.where(count_B > 0, lengths_B + count_B, 0)[:, None].to(torch.int64)
    first_B1 = last_B1 * 0 if window is None else (lengths_B[:, None] - window + 1).clamp(min=0)
    page_P = torch.arange(page_table_BP.shape[1], device=page_table_BP.device)
    read_BP = (page_P * page_size < last_B1) & ((page_P + 1) * page_size > first_B1)
    wrong_BP = read_BP & ((page_table_BP < 0) | (page_table_BP >= pages))
    if wrong_BP.any():
        row, place = wrong_BP.nonzero()[0].tolist()
        raise UserError(
            f"{name}: page_table_BP[{row}, {place}] is {int(page_table_BP[row, place])}, "
            f"not one of the {pages} pages"
        )
