"""The training order: endless, reshuffled, the same for every number of ranks, resumed by one number."""

from __future__ import annotations

from itertools import islice

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_eff.data.stream import Batch, EvaluationBatches, Position, TrainingStream, shuffled

small = st.integers(1, 5)


class Numbered:
    """Examples that show which were asked for, as (pass, index)."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, wanted: list[tuple[int, int]]) -> Batch:
        return {"asked": torch.tensor(wanted)}


def stream(
    count: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0, start: int = 0
) -> TrainingStream:
    position = Position(lambda: 0)
    position.restore(start)
    return TrainingStream(
        Numbered(count),
        seed=seed,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        batches=10,
        position=position,
    )


def samples(loader: TrainingStream, batches: int) -> list[tuple[int, int]]:
    return [tuple(pair) for batch in islice(loader, batches) for pair in batch["asked"].tolist()]


@settings(deadline=None)
@given(count=st.integers(1, 20), batch_size=small, world_size=small, batches=st.integers(1, 8), seed=small)
def test_the_ranks_together_read_the_one_stream(
    count: int, batch_size: int, world_size: int, batches: int, seed: int
) -> None:
    alone = samples(stream(count, 1, seed=seed), batches * batch_size * world_size)
    ranks = [
        list(islice(stream(count, batch_size, rank, world_size, seed), batches)) for rank in range(world_size)
    ]
    together = [
        tuple(pair) for batch in range(batches) for rank in ranks for pair in rank[batch]["asked"].tolist()
    ]
    assert together == alone


@settings(deadline=None)
@given(count=st.integers(1, 20), batch_size=small, world_size=small, done=st.integers(0, 12))
def test_starting_at_a_sample_is_skipping_to_it(
    count: int, batch_size: int, world_size: int, done: int
) -> None:
    rank = world_size - 1
    whole = samples(stream(count, batch_size, rank, world_size), done + 5)
    rest = stream(count, batch_size, rank, world_size, start=done * batch_size * world_size)
    assert samples(rest, 5) == whole[done * batch_size :]


def test_each_pass_holds_every_example_in_an_order_of_its_own() -> None:
    read = samples(stream(50, 7), 30)
    passes = [[index for number, index in read if number == of] for of in range(4)]
    assert all(sorted(order) == list(range(50)) for order in passes)
    assert len({tuple(order) for order in passes}) == 4
    assert samples(stream(50, 7, seed=1), 30) != read


def test_the_order_is_the_same_for_ever() -> None:
    # PCG64's stream and a stable sort: numbers that no version of numpy may change.
    assert shuffled(8, 1, 2).tolist() == [5, 6, 3, 2, 1, 0, 4, 7]
    assert shuffled(8, 1, 3).tolist() != [5, 6, 3, 2, 1, 0, 4, 7]


def test_permutations_are_uniform() -> None:
    counts = torch.zeros(6, 6)
    for key in range(3000):
        counts[range(6), torch.from_numpy(shuffled(6, 5, key))] += 1
    expected = 3000 / 6
    # 36 cells, 25 degrees of freedom: the chi-square statistic is below 52.6 with probability 0.999.
    assert float(((counts - expected) ** 2 / expected).sum()) < 52.6


def test_position_counts_what_was_processed_not_what_was_fetched() -> None:
    processed = 0
    position = Position(lambda: processed)
    assert position.open(6) == 0
    processed = 4
    assert position.samples == 24
    assert position.open(10) == 24  # the loader again, with another batch size
    processed = 5
    assert position.samples == 34
    position.restore(7)
    processed = 90  # another run's count
    assert position.samples == 7
    assert position.open(1) == 7


@settings(deadline=None)
@given(count=st.integers(1, 30), batch_size=small, world_size=small)
def test_evaluation_reads_each_example_once_on_equal_numbers_of_batches(
    count: int, batch_size: int, world_size: int
) -> None:
    ranks = [
        list(EvaluationBatches(Numbered(99), count, batch_size=batch_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    read = [index for k in range(len(ranks[0])) for rank in ranks for _, index in rank[k]["asked"].tolist()]
    assert [index for index in read if index < 99] == list(range(count))
    assert len(read) - count < world_size  # padding (99 is past the last): one example on a rank, if any
