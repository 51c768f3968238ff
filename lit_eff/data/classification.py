"""Labelled text for classifiers: one document an example, padded to the longest of its batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from lit_eff.data.base import CorpusData
from lit_eff.data.corpus import CorpusConfig, Documents
from lit_eff.data.packing import IGNORED, PADDING
from lit_eff.data.readers import TextFormat
from lit_eff.data.splits import Splits
from lit_eff.data.stream import Batch
from lit_eff.data.tokenizer import TokenizerConfig

_DEFAULT_TOKENIZER = TokenizerConfig()
_DEFAULT_SPLITS = Splits()


class ClassificationData(CorpusData):
    """Documents and their classes, from the same sources as :class:`LanguageModelData` (txt excepted).

    A batch is a dictionary of int64 tensors (B documents, T tokens of the longest): ``tokens_BT``;
    ``documents_BT``, 0 for a token and -1 for padding; ``labels_B``, the class numbers (-100 for an example
    that only evens out the ranks of a distributed evaluation).

    Args:
        label_column: the column or key that holds the class, a name or a whole number. Classes are
            numbered in their sorted order, or as a Hugging Face ``ClassLabel`` has them.
        context: documents are cut to this many tokens, the special ones kept.
        batch_size: documents a batch and rank.

    The other arguments, and what they raise, are those of :class:`LanguageModelData`.
    """

    def __init__(
        self,
        source: str,
        tokenizer: TokenizerConfig = _DEFAULT_TOKENIZER,
        context: int = 256,
        batch_size: int = 32,
        splits: Splits = _DEFAULT_SPLITS,
        seed: int = 0,
        cache_dir: str | None = None,
        text_column: str = "text",
        label_column: str = "label",
        encoding: str = "utf-8",
        max_documents: int | None = None,
    ) -> None:
        form = TextFormat(text_column, label_column, encoding)
        config = CorpusConfig(source, form, splits, tokenizer, max_documents, max_tokens=context)
        super().__init__(config, context=context, batch_size=batch_size, seed=seed, cache_dir=cache_dir)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of their numbers."""
        return tuple(self.corpus.manifest["class_names"])

    def labels(self, split: str) -> NDArray[np.int64]:
        """The class number of each of ``documents(split)``."""
        return self.corpus.labels(split)

    def examples(self, split: str, *, shuffle: bool) -> LabelledDocuments:
        return LabelledDocuments(self.documents(split), self.labels(split))


@dataclass(frozen=True)
class LabelledDocuments:
    """The documents of a split as examples; every pass has the same ones."""

    documents: Documents
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.documents)

    def batch(self, wanted: list[tuple[int, int]]) -> Batch:
        indices = [index for _, index in wanted]
        lengths = [int(self.documents.lengths[index]) if index < len(self) else 0 for index in indices]
        shape = (len(indices), max(1, *lengths))
        # Padding is told by its document id: its token may be any.
        batch = {
            "tokens_BT": np.zeros(shape, dtype=np.int64),
            "documents_BT": np.full(shape, PADDING, dtype=np.int64),
            "labels_B": np.full(len(indices), IGNORED, dtype=np.int64),
        }
        for b, (index, length) in enumerate(zip(indices, lengths, strict=True)):
            if index < len(self):
                batch["tokens_BT"][b, :length] = self.documents[index]
                batch["documents_BT"][b, :length] = 0
                batch["labels_B"][b] = self.labels[index]
        return {name: torch.from_numpy(array) for name, array in batch.items()}
