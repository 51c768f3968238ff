"""Documents laid end to end and cut into rows of equal length, none of them seeing another.

B rows, T tokens a row. Each token is an input once a pass; its target is the next token of its document,
and after a document's last token the end-of-text token. So no token is lost, none is a target across
documents, and no position is spent on separators.

A document that does not fit into its row goes on in the next one, as a piece of its own: its positions
start at 0 again and it does not see what the row before held. Only the last row of a pass can be short;
what is missing is padding (document -1, target -100), less than one row a pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lit_eff.data.corpus import Documents

IGNORED = -100  # torch.nn.functional.cross_entropy's ignore_index
PADDING = -1  # the document id of padding


class Packing:
    """The rows of one pass over a split.

    Args:
        documents: the split's documents.
        order: a permutation of their indices: the order in which they are laid out.
        context: T, tokens a row.
        end_of_text: the target after each document's last token.
    """

    def __init__(
        self, documents: Documents, order: NDArray[np.int64], *, context: int, end_of_text: int
    ) -> None:
        order = order[documents.lengths[order] > 0]  # the rest take no room and end no row
        self._tokens = documents.tokens
        self._starts = documents.starts[order]
        self._ends = np.cumsum(documents.lengths[order])  # where each document ends in this pass
        self._lengths = documents.lengths[order]
        self._context = context
        self._end_of_text = end_of_text
        self.rows = row_count(documents, context)

    def batch(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The named rows as int64 (B, T) tensors: ``tokens_BT``, ``targets_BT`` (-100 is ignored),
        ``positions_BT`` (from 0 in each piece of a document) and ``documents_BT`` (a number for each piece
        of the row, -1 for padding). A row past the last is padding alone.
        """
        shape = (len(rows), self._context)
        batch = {
            "tokens_BT": np.full(shape, self._end_of_text, dtype=np.int64),
            "targets_BT": np.full(shape, IGNORED, dtype=np.int64),
            "positions_BT": np.zeros(shape, dtype=np.int64),
            "documents_BT": np.full(shape, PADDING, dtype=np.int64),
        }
        for b, row in enumerate(rows):
            self._fill(row, *(array[b] for array in batch.values()))
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _fill(
        self,
        row: int,
        tokens_T: NDArray[np.int64],
        targets_T: NDArray[np.int64],
        positions_T: NDArray[np.int64],
        documents_T: NDArray[np.int64],
    ) -> None:
        at = row * self._context
        document = int(np.searchsorted(self._ends, at, side="right"))
        filled = 0
        piece = 0
        while filled < self._context and document < len(self._ends):
            skipped = int(self._lengths[document] - (self._ends[document] - at))  # on earlier rows
            size = min(self._context - filled, int(self._ends[document]) - at)
            start = int(self._starts[document]) + skipped
            here = slice(filled, filled + size)
            tokens_T[here] = self._tokens[start : start + size]
            positions_T[here] = np.arange(size)
            documents_T[here] = piece
            ends_here = skipped + size == self._lengths[document]
            known = size - 1 if ends_here else size
            targets_T[filled : filled + known] = self._tokens[start + 1 : start + 1 + known]
            if ends_here:
                targets_T[filled + known] = self._end_of_text
            filled += size
            at += size
            piece += 1
            document += 1


def row_count(documents: Documents, context: int) -> int:
    """Rows of one pass: all tokens, the last row filled up with padding."""
    return -(-int(documents.lengths.sum()) // context)
