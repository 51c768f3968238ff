"""What the two DataModules share: opening the corpus, loaders sharded by rank, exact resume."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from tokenizers import Tokenizer

from lit_eff.data.corpus import Corpus, CorpusConfig, Documents, default_cache_dir, open_corpus
from lit_eff.data.stream import EvaluationBatches, Examples, Position, TrainingStream
from lit_eff.data.tokenizer import vocabulary_size
from lit_eff.errors import UserError

_SAID: set[str] = set()


class CorpusData(LightningDataModule):
    """A corpus with training, validation and test loaders.

    The corpus is opened (and built, the first time) by ``prepare_data``, or by whichever attribute needs it
    first: a command that only wants the tokenizer needs no Trainer.
    """

    def __init__(
        self, config: CorpusConfig, *, context: int, batch_size: int, seed: int, cache_dir: str | None
    ) -> None:
        super().__init__()
        for name, value in (("context", context), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"data.{name} is {value}; expected a positive integer")
        if seed < 0:
            raise UserError(f"data.seed is {seed}; expected 0 or more")
        self.config = config
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir).expanduser()
        self._position = Position(self._batches_processed)

    @cached_property
    def corpus(self) -> Corpus:
        """Raise UserError for anything wrong with the source, the tokenizer or the cache folder."""
        return open_corpus(self.config, self.cache_dir)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.corpus.tokenizer

    @property
    def tokenizer_json(self) -> str:
        """The text of a tokenizer.json."""
        return self.corpus.tokenizer_json

    @property
    def vocab_size(self) -> int:
        """Rows of an embedding that covers every token id."""
        return vocabulary_size(self.corpus.tokenizer)

    @property
    def split_hashes(self) -> dict[str, str]:
        """SHA-256 of each split's documents, as a set."""
        return dict(self.corpus.manifest["split_hashes"])

    def documents(self, split: str) -> Documents:
        """The token ids (int32, memory-mapped) of each document of a split, special tokens included, in a
        random order fixed by the documents' content: a prefix is a fair sample.

        Raises:
            UserError: for an unknown or empty split.
        """
        return self.corpus.documents(split)

    @abstractmethod
    def examples(self, split: str, *, shuffle: bool) -> Examples:
        """The examples of a split; with ``shuffle``, laid out anew in each pass."""

    def evaluation_examples(self, split: str) -> int:
        """How many of the first examples of a split are evaluated."""
        return len(self.examples(split, shuffle=False))

    def prepare_data(self) -> None:
        self.corpus  # noqa: B018  # built by one process a node, under a lock

    def setup(self, stage: str) -> None:
        summary = self.corpus.summary()
        if summary not in _SAID:  # a process may set the same corpus up for several jobs
            _SAID.add(summary)
            rank_zero_info(f"Data: {summary}")
        if stage == "fit" and self._batches_processed() == 0:
            self._position.restore(0)  # a new run; a checkpoint, if any, is restored after this

    def train_dataloader(self) -> TrainingStream:
        """Endless; as long, for Lightning, as ``trainer.max_steps`` optimizer steps, or one pass without."""
        examples = self.examples("train", shuffle=True)
        rank, world_size = self._rank()
        batches = -(-len(examples) // (self.batch_size * world_size))
        trainer: Any = self.trainer  # Any: Lightning sets overfit_batches outside of __init__
        if trainer is not None and trainer.overfit_batches > 0:
            raise UserError(
                "trainer.overfit_batches is not supported: training reads an endless stream that repeats no "
                "batch; set data.max_documents to train on little data"
            )
        if trainer is not None and trainer.max_steps > 0:
            batches = trainer.max_steps * trainer.accumulate_grad_batches
        return TrainingStream(
            examples,
            seed=self.seed,
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
            batches=batches,
            position=self._position,
        )

    def val_dataloader(self) -> EvaluationBatches:
        return self._evaluation("validation")

    def test_dataloader(self) -> EvaluationBatches:
        return self._evaluation("test")

    def predict_dataloader(self) -> EvaluationBatches:
        return self.test_dataloader()

    def _evaluation(self, split: str) -> EvaluationBatches:
        rank, world_size = self._rank()
        return EvaluationBatches(
            self.examples(split, shuffle=False),
            self.evaluation_examples(split),
            batch_size=self.batch_size,
            rank=rank,
            world_size=world_size,
        )

    def _rank(self) -> tuple[int, int]:
        """Rank and size among the ranks that read different data (tensor-parallel ranks read the same)."""
        kwargs = None if self.trainer is None else self.trainer.distributed_sampler_kwargs
        return (0, 1) if kwargs is None else (kwargs["rank"], kwargs["num_replicas"])

    def _batches_processed(self) -> int:
        if self.trainer is None:
            return 0
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        return int(total.processed)

    def state_dict(self) -> dict[str, Any]:
        return {"samples": self._position.samples, **self._stream_identity()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the sample where the checkpoint was written."""
        now = self._stream_identity()
        changed = [name for name, value in now.items() if state_dict.get(name) != value]
        if changed and self.trainer is not None and self.trainer.state.fn == "fit":
            rank_zero_warn(
                f"this run's {' and '.join(changed)} differ from the checkpoint's: training goes on at "
                f"sample {state_dict['samples']} of another stream"
            )
        self._position.restore(state_dict["samples"])

    def _stream_identity(self) -> dict[str, Any]:
        return {"seed": self.seed, "context": self.context, "train split": self.split_hashes["train"]}
