"""Splits are decided by content: disjoint, stable, and of the sizes asked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_eff.data.build import plan_corpus
from lit_eff.data.progress import Stages
from lit_eff.data.readers import Record
from lit_eff.data.splits import SPLITS, Splits, content_digest, shuffled_key, split_hash
from lit_eff.errors import UserError
from tests.data.helpers import sentence

texts = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=30)
FALLING = Splits(0.4, 0.3, 0.2, 0.1)
IN_TRAIN = next(sentence(n) for n in range(99) if FALLING.assign(content_digest(sentence(n))) == 0)


class ListSource:
    """A source that holds its documents."""

    class_names = None

    def __init__(self, texts: list[str], labels: list[str] | None = None) -> None:
        self.texts = texts
        self.labels = labels or [None] * len(texts)

    def fingerprint(self) -> str:
        return ""

    def records(self):  # type: ignore[no-untyped-def]
        for number, (text, label) in enumerate(zip(self.texts, self.labels, strict=True)):
            yield Record(text, label, f"row {number}")


def plan_of(
    texts: list[str], splits: Splits = FALLING, labels: list[str] | None = None, limit: int | None = None
):  # type: ignore[no-untyped-def]
    with Stages() as progress:
        return plan_corpus(ListSource(texts, labels), splits, limit, progress)


@settings(deadline=None)
@given(before=texts, added=texts)
def test_adding_documents_moves_none(before: list[str], added: list[str]) -> None:
    def splits_of(texts: list[str]) -> dict[str, str]:
        texts = [*texts, IN_TRAIN]
        return {texts[i].strip(): name for name, members in plan_of(texts).members.items() for i in members}

    old, new = splits_of(before), splits_of(added + before)
    assert {text: new[text] for text in old} == old
    assert set(new) == {text.strip() for text in [*added, *before, IN_TRAIN]} - {""}


def test_the_plan_follows_the_assignment_and_drops_duplicates() -> None:
    unique = [sentence(n) for n in range(400)]
    texts = [*unique, *unique[:7], "  ", "\n" + unique[0] + " "]
    plan = plan_of(texts)
    assert (plan.documents, plan.duplicates, plan.empty) == (400, 8, 1)
    assert sorted(index for members in plan.members.values() for index in members) == list(range(400))
    for name, members in plan.members.items():
        assert all(SPLITS[FALLING.assign(content_digest(unique[index]))] == name for index in members)


def test_fractions_are_met() -> None:
    counts = dict.fromkeys(range(4), 0)
    for n in range(20_000):
        counts[FALLING.assign(content_digest(str(n)))] += 1
    # Four standard deviations of a binomial count.
    for index, fraction in enumerate((0.4, 0.3, 0.2, 0.1)):
        assert abs(counts[index] - 20_000 * fraction) < 4 * (20_000 * fraction * (1 - fraction)) ** 0.5


def test_test_and_calibration_are_dealt_first() -> None:
    """The order is part of the data's identity: another one would certify on text that choices have seen."""
    names = [SPLITS[Splits().assign(bytes([first]) + bytes(15))] for first in (0, 10, 20, 30, 255)]
    assert names == ["test", "calibration", "validation", "train", "train"]


def test_the_order_within_a_split_does_not_depend_on_the_files() -> None:
    unique = [sentence(n) for n in range(100)]
    forward, backward = plan_of(unique), plan_of(unique[::-1])
    for name in SPLITS:
        assert [unique[i] for i in forward.members[name]] == [unique[::-1][i] for i in backward.members[name]]
        assert split_hash(forward.digests[i] for i in forward.members[name]) == split_hash(
            backward.digests[i] for i in backward.members[name]
        )


def test_a_bounded_corpus_keeps_the_proportions() -> None:
    plan = plan_of([sentence(n) for n in range(4000)], limit=1000)
    assert (plan.documents, plan.beyond) == (1000, 3000)
    # The bits that choose the documents are not those that split them.
    assert abs(len(plan.members["train"]) - 400) < 4 * (1000 * 0.4 * 0.6) ** 0.5
    assert abs(len(plan.members["test"]) - 100) < 4 * (1000 * 0.1 * 0.9) ** 0.5


def test_digests_order_independently_of_the_split() -> None:
    digests = [content_digest(str(n)) for n in range(1000)]
    first_half = sorted(digests, key=shuffled_key)[:500]
    low = sum(digest[0] < 128 for digest in first_half)
    assert abs(low - 250) < 4 * 250**0.5


def test_conflicting_labels_are_counted() -> None:
    plan = plan_of(["x", "x", "x", "y"], Splits(1, 0, 0, 0), ["1", "2", "1", "10"])
    assert (plan.duplicates, plan.conflicts, plan.class_names) == (2, 1, ("1", "10"))


def test_classes_sort_as_numbers_or_as_names() -> None:
    everything = Splits(1, 0, 0, 0)
    assert plan_of(["a", "b", "c"], everything, ["10", "9", "-1"]).class_names == ("-1", "9", "10")
    assert plan_of(["a", "b", "c"], everything, ["pos", "9", "neg"]).class_names == ("9", "neg", "pos")


@pytest.mark.parametrize(
    ("fractions", "message"),
    [((0.5, 0.2, 0.2, 0.2), "sum 1.1"), ((1.1, -0.1, 0, 0), "validation -0.1"), ((0, 1, 0, 0), "train is 0")],
)
def test_bad_fractions(fractions: tuple[float, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Splits(*fractions)


def test_no_document_to_train_on() -> None:
    with pytest.raises(UserError, match=r"none of the 1 documents falls into the train split.*txt_unit"):
        plan_of(["one"], Splits(1e-9, 1 - 1e-9, 0, 0))
