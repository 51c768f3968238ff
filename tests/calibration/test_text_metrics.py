"""Metrics by name: text metrics against values computed by hand, the user's own function and its refusals."""

from __future__ import annotations

import math

import pytest

from lit_eff.calibration.config import FUNCTION, METRICS, CalibrationConfig
from lit_eff.calibration.text_metrics import find_metric
from lit_eff.errors import UserError
from lit_eff.runtime import metrics
from lit_eff.runtime.metrics import TEXT_METRICS, TOKEN_METRICS
from tests.runtime.fakes import byte_tokenizer

TOKENIZER = byte_tokenizer()
CAT, OTHER = "the cat sat on the mat", "the cat sat on a mat"

HERE = __name__


def ids(text: str) -> list[int]:
    tokens: list[int] = TOKENIZER.encode(text).ids
    return tokens


def distance(name: str, one: str, other: str) -> float:
    return find_metric(name, TOKENIZER.to_str())(ids(one), ids(other))


@pytest.mark.parametrize(
    ("name", "one", "other", "expected"),
    [
        # The longest common subsequence has 5 words of 6 and 6; then 2 of 4 and 2: F = 2 P R / (P + R).
        ("rouge_l", CAT, OTHER, 1 - 5 / 6),
        ("rouge_l", "a b c d", "a c", 1 - 2 * 0.5 * 1 / 1.5),
        ("rouge_l", "a b", "c d", 1.0),
        # n-grams found: 5 of 6 words; then, each plus one, 3 of 5, 2 of 4, 1 of 3. Equal lengths: no penalty.
        ("bleu", CAT, OTHER, 1 - (5 / 6 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25),
        # The same n-grams of 6 words, but the reference has 7: exp(1 - 7/6).
        (
            "bleu",
            "the cat sat on the mat",
            "the cat sat on the mat now",
            1 - math.exp(1 - 7 / 6),
        ),
        # Characters in n-grams of 1 to 6: 5 of 6, 4 of 5, 3 of 4, 2 of 3, 1 of 2, 0 of 1; P = R = F.
        ("chrf", "abcdef", "abcdeg", 1 - (5 / 6 + 4 / 5 + 3 / 4 + 2 / 3 + 1 / 2) / 6),
        ("edit_distance", "abcd", "abxd", 1 / len(ids("abcd"))),
    ],
)
def test_by_hand(name: str, one: str, other: str, expected: float) -> None:
    assert distance(name, one, other) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("text", ["", "a", "two words", "...", "ein süßer Satz", CAT])
def test_a_text_is_no_distance_from_itself(name: str, text: str) -> None:
    assert distance(name, text + "x", text + "x") == 0.0
    if name in TEXT_METRICS:
        assert distance(name, text, text) == 0.0
        assert 0.0 <= distance(name, text, "quite another") <= 1.0


def longer(one: str, other: str) -> float:
    return abs(len(one) - len(other)) / 10


def similarity(one: str, other: str) -> float:
    return float(one == other)


def test_a_function_of_ones_own_takes_texts() -> None:
    assert distance(f"{HERE}:longer", "abcd", "a") == 0.3
    assert distance(f"{HERE}:longer", "abcd", "bcda") == 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{HERE}:longer", r"metric .*:longer returned 1\.1; expected a dissimilarity in \[0, 1\]"),
        (f"{HERE}:absent", "has no function absent"),
        (f"{HERE}:HERE", "has no function HERE"),
        ("no_such_module.at_all:f", r"cannot be imported .*PYTHONPATH"),
    ],
)
def test_functions_that_cannot_be_used_are_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        distance(name, "a", "abcdefghijkl")


def test_a_similarity_is_no_dissimilarity() -> None:
    with pytest.raises(UserError, match=r"similarity returned 1\.0 for two equal texts"):
        distance(f"{HERE}:similarity", "a", "a")
    with pytest.raises(UserError, match="returned nan"):
        distance(f"{HERE}:nowhere", "a", "b")


def nowhere(one: str, other: str) -> float:
    return float("nan")


def test_text_needs_a_tokenizer() -> None:
    assert find_metric("exact_match", None)([1], [2]) == 1.0
    with pytest.raises(UserError, match="'rouge_l', of text, and the model has no tokenizer"):
        find_metric("rouge_l", None)


def test_names_of_the_section_are_the_runtimes() -> None:
    assert METRICS == metrics.METRICS == (*TOKEN_METRICS, *TEXT_METRICS)
    assert FUNCTION == metrics.CALLABLE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "rouge"}, "did you mean 'rouge_l'"),
        ({"metric": "os.system"}, "package.module:function"),
        ({"metric": "bleu", "p_value": "binomial"}, "bleu is in between"),
        ({"p_value": "binomial"}, "token_disagreement is in between"),
        ({"risk": "disagreement", "metric": "bleu"}, "leave the metric out"),
        ({"risk": "error", "decay": 4.0}, "a classifier generates none"),
    ],
)
def test_settings_that_do_not_fit_together(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CalibrationConfig(**changes)


def test_losses_of_0_or_1_may_be_binomial() -> None:
    for changes in ({"metric": "exact_match"}, {"risk": "error"}, {"risk": "disagreement"}):
        assert CalibrationConfig(**changes, p_value="binomial").p_value == "binomial"  # type: ignore[arg-type]
