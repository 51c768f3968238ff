"""Which example is trained on when: a pure function of (seed, samples consumed), whatever the hardware.

Training reads an endless stream: pass after pass over the examples, each in an order of its own. Batch k of
``world_size`` ranks holds samples k*G .. (k+1)*G - 1 of the stream, G = batch_size * world_size, a
contiguous share to each rank. So the ranks together read the same samples in the same order for every
world size and accumulation, and a checkpoint needs to hold one number: how many samples were consumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Batch = dict[str, torch.Tensor]


class Examples(Protocol):
    """A split as numbered examples, laid out anew in each pass."""

    def __len__(self) -> int:
        """Examples in a pass: the same in every one."""

    def batch(self, wanted: list[tuple[int, int]]) -> Batch:
        """The examples (pass, index), collated; an index past the last gives padding."""


def shuffled(count: int, *key: int) -> NDArray[np.int64]:
    """A permutation of range(count) that depends on the key alone.

    Sorts raw PCG64 output: numpy promises that stream for ever, unlike ``Generator.permutation`` (NEP 19).
    """
    raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
    return np.argsort(raw, kind="stable").astype(np.int64, copy=False)


class Position:
    """How many samples of the stream, over all ranks, training has consumed.

    Lightning may fetch batches ahead, re-open the loader at an epoch's border, and be interrupted within a
    batch; so fetching a batch does not count as consuming it. What counts is Lightning's own number of
    batches processed since the loader was opened.

    Args:
        processed: the batches that training has processed up to now, of any run.
    """

    def __init__(self, processed: Callable[[], int]) -> None:
        self._processed = processed
        self._samples = 0
        self._batches: int | None = None  # ``processed()`` when the loader was opened at ``_samples``
        self._batch_samples = 0

    @property
    def samples(self) -> int:
        if self._batches is None:
            return self._samples
        return self._samples + (self._processed() - self._batches) * self._batch_samples

    def restore(self, samples: int) -> None:
        self._samples, self._batches = samples, None

    def open(self, batch_samples: int) -> int:
        """Count batches of this many samples from now on; returns the sample to begin with."""
        self._samples = self.samples
        self._batches = self._processed()
        self._batch_samples = batch_samples
        return self._samples


class TrainingStream:
    """The endless training loader of one rank.

    Args:
        batches: its length as Lightning sees it: the batches of one Lightning epoch. It only says when an
            epoch ends (iterating goes on for ever), and lets progress bars and ``val_check_interval``
            fractions know the whole.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        seed: int,
        batch_size: int,
        rank: int,
        world_size: int,
        batches: int,
        position: Position,
    ) -> None:
        self._examples = examples
        self._seed = seed
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        self._batches = batches
        self._position = position

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        # A generator: the position is read at the first batch, since Lightning calls iter() before it
        # restores a checkpoint (sharded strategies) or long before it trains.
        global_batch = self._batch_size * self._world_size
        sample = self._position.open(global_batch) + self._rank * self._batch_size
        order: tuple[int, NDArray[np.int64]] | None = None
        while True:
            wanted = []
            for number in range(sample, sample + self._batch_size):
                number_of_pass, index = divmod(number, len(self._examples))
                if order is None or order[0] != number_of_pass:
                    order = number_of_pass, shuffled(len(self._examples), self._seed, number_of_pass)
                wanted.append((number_of_pass, int(order[1][index])))
            yield self._examples.batch(wanted)
            sample += global_batch

    # The DataModule's own state holds the position too: Lightning drops a loader's when something touches
    # trainer.estimated_stepping_batches, and without one it warns that the loader cannot resume.
    def state_dict(self) -> dict[str, Any]:
        return {"samples": self._position.samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._position.restore(state["samples"])


class EvaluationBatches:
    """Every example once, in a fixed order: the same for every world size.

    Ranks get equal numbers of batches, as collectives need; a rank left without examples in the last one
    gets one example of padding.
    """

    def __init__(
        self, examples: Examples, count: int, *, batch_size: int, rank: int, world_size: int
    ) -> None:
        self._examples = examples
        self._count = count
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size

    def __len__(self) -> int:
        return -(-self._count // (self._batch_size * self._world_size))

    def __iter__(self) -> Iterator[Batch]:
        padding = len(self._examples)
        for k in range(len(self)):
            first = (k * self._world_size + self._rank) * self._batch_size
            indices = range(first, min(first + self._batch_size, self._count)) or [padding]
            yield self._examples.batch([(0, index) for index in indices])
