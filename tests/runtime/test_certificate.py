"""The certificate: a round trip, and every way it can be wrong refused with the file and field named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lit_eff.errors import UserError
from lit_eff.runtime.certificate import Certificate, tokenizer_sha256
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.evidence import Candidate, Learning, Measured
from lit_eff.runtime.exit_rule import ExitRule


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def measured(split: str, risk: float, layers: float) -> Measured:
    return Measured(
        split_sha256=sha(split),
        sequences=300,
        risk=risk,
        layers_per_token=layers,
        computed_layers_per_token=layers + 0.5,
    )


def candidate(threshold: float, risk: float, p_value: float) -> Candidate:
    return Candidate(
        threshold=threshold, risk=risk, p_value=p_value, certified=p_value <= 0.05, layers_per_token=6.0
    )


def certificate(**changes: Any) -> Certificate:
    values: dict[str, Any] = {
        "delta": 0.25,
        "epsilon": 0.05,
        "procedure": "fixed_sequence",
        "p_value": "hoeffding_bentkus",
        "candidates": (candidate(0.9, 0.1, 1e-9), candidate(0.7, 0.18, 0.02), candidate(0.5, 0.3, 1.0)),
        "selected": 1,
        "exit_layers": (2, 4, 8),
        "thresholds": (0.7, 0.7),
        "measure": "softmax_response",
        "decay": 4.0,
        "horizon": 16,
        "kv_policy": "deferred",
        "dtype": "float32",
        "prompt_length": 32,
        "continuation_length": 16,
        "calibration": measured("calibration", 0.18, 5.0),
        "test": measured("test", 0.21, 5.125),
        "train_sha256": sha("train"),
        "weights_sha256": sha("weights"),
        "tokenizer_sha256": sha("tokenizer"),
    }
    return Certificate(**{**values, **changes})


def vectors(**changes: Any) -> Certificate:
    """A learned path of vectors, the second of which is certified."""
    path = ((None, 0.9), (0.8, None), (0.7, 0.5))
    common = {"layers_per_token": 6.0, "risk": 0.1}
    values: dict[str, Any] = {
        "procedure": "split_fixed_sequence",
        "candidates": tuple(
            Candidate(thresholds=vector, p_value=p_value, certified=p_value < 0.05, **common)
            for vector, p_value in zip(path, (0.001, 0.01, 0.6), strict=True)
        ),
        "thresholds": (0.8, None),
        "learning": Learning(split_sha256=sha("learning"), sequences=500, vectors=77),
    }
    return certificate(**{**values, **changes})


def never(**changes: Any) -> Certificate:
    failing = (candidate(0.9, 0.4, 1.0),)
    return certificate(candidates=failing, selected=None, thresholds=(None, None), **changes)


@pytest.mark.parametrize("make", [certificate, never, vectors])
def test_round_trip(make: Callable[[], Certificate], tmp_path: Path) -> None:
    path = tmp_path / "exits.json"
    make().save(path)
    assert Certificate.load(path) == make()
    assert [child.name for child in tmp_path.iterdir()] == ["exits.json"]


def test_a_file_from_before_intervals_and_exit_shares_loads_and_keeps_its_digest(tmp_path: Path) -> None:
    old, path = certificate(), tmp_path / "exits.json"
    old.save(path)
    content = json.loads(path.read_text())
    assert set(content["candidates"][0]) == {
        *("threshold", "risk", "p_value", "certified", "layers_per_token")
    }
    assert "exit_shares" not in content["test"]
    assert never().model_dump(mode="json")["selected"] is None
    assert content["content_sha256"] == old.sha256 == Certificate.load(path).sha256
    new = old.model_copy(
        update={
            "test": old.test.model_copy(update={"exit_shares": (0.5, 0.25, 0.25)}),
            "candidates": tuple(
                one.model_copy(update={"risk_interval": (0.0, 1.0)}) for one in old.candidates
            ),
        }
    )
    new.save(path)
    assert Certificate.load(path) == new != old
    assert new.sha256 != old.sha256


def test_never_is_a_word_in_the_file_and_none_in_the_rule(tmp_path: Path) -> None:
    path = tmp_path / "exits.json"
    never().save(path)
    assert json.loads(path.read_text())["thresholds"] == ["never", "never"]
    rule = Certificate.load(path).exit_rule()
    assert rule.thresholds == (None, None)
    assert not rule.should_exit(0, [1.0], 0).any()


def test_vectors_are_written_as_people_type_them(tmp_path: Path) -> None:
    path = tmp_path / "exits.json"
    vectors().save(path)
    content = json.loads(path.read_text())
    assert content["candidates"][0]["thresholds"] == ["never", 0.9]
    assert "threshold" not in content["candidates"][0]
    assert [one.label for one in Certificate.load(path).candidates] == [
        "never, 0.9",
        "0.8, never",
        "0.7, 0.5",
    ]
    assert Certificate.load(path).exit_rule().thresholds == (0.8, None)
    assert vectors().vectors
    assert not certificate().vectors
    assert "split-fixed-sequence" in sentence(vectors())
    assert "path learned on 500 others" in sentence(vectors())


def test_a_candidate_has_one_threshold_or_one_for_each_exit() -> None:
    common = {"risk": 0.1, "p_value": 0.1, "certified": False, "layers_per_token": 6.0}
    for wrong in ({}, {"threshold": 0.5, "thresholds": (0.5, 0.5)}):
        with pytest.raises(ValidationError, match="either threshold, for all early exits, or thresholds"):
            Candidate(**wrong, **common)
    assert Candidate(threshold=0.5, **common).vector(3) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": (None, 0.9)}, "thresholds differ"),
        ({"exit_layers": (2, 8), "thresholds": (0.8,)}, "candidate 0 has thresholds for other than 1"),
        ({"learning": None}, "procedure split_fixed_sequence and learning contradict"),
        ({"procedure": "fixed_sequence"}, "procedure fixed_sequence and learning contradict"),
        *(
            ({"learning": Learning(split_sha256=sha(split), sequences=5, vectors=5)}, "must be disjoint")
            for split in ("train", "calibration", "test")
        ),
    ],
)
def test_vectors_that_contradict_their_certificate_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        vectors(**changes)


def test_exit_rule_carries_measure_thresholds_and_schedule() -> None:
    expected = ExitRule(measure="softmax_response", thresholds=(0.7, 0.7), decay=4.0, horizon=16)
    assert certificate().exit_rule() == expected


def test_sentence_says_what_was_promised_and_what_was_measured() -> None:
    text = sentence(certificate())
    for part in ("95%", "25% of the 16 tokens", "32-token", "300 sequences", "21.0%", "5.12 of 8 layers"):
        assert part in text
    assert text.endswith("per token.")
    assert ". " not in text
    assert "all 8 layers" in sentence(never())


CLASSIFIER = {"metric": "zero_one", "kv_policy": None, "prompt_length": None, "continuation_length": 1}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"metric": "rouge_l"},
            ["moves the 16 tokens after a 32-token prompt", "by at most 0.25 on average in 1 - ROUGE-L"],
        ),
        ({"metric": "my.code:loss"}, ["on average in `my.code:loss`", "moved them by 0.2100"]),
        (
            {"certifies": "risk_consistency", "metric": "edit_distance"},
            [
                "raises the normalised token edit distance",
                "document's own",
                "0.25 over the full model's",
                "raised it by 0.2100",
            ],
        ),
        (
            {"certifies": "disagreement", **CLASSIFIER},
            ["changes on average at most 25% of the labels", "changed 21.0%", "8 layers per sequence"],
        ),
        (
            {"certifies": "error", **CLASSIFIER},
            ["labels wrong that the full model gets right", "got 21.0% so"],
        ),
    ],
)
def test_every_risk_has_its_sentence(changes: dict[str, Any], parts: list[str], tmp_path: Path) -> None:
    made = certificate(**changes)
    for part in [*parts, "95%", "300 sequences"]:
        assert part in sentence(made)
    assert "tokens after" not in sentence(made) or not made.classifies
    assert "all 8 layers" in sentence(never(**changes))
    made.save(tmp_path / "exits.json")
    assert Certificate.load(tmp_path / "exits.json") == made
    if made.classifies:
        with pytest.raises(
            UserError, match=f"of a classifier \\({made.certifies}\\), whose exits no engine runs"
        ):
            made.check_writes()
    else:
        made.check_writes()


def test_certificates_of_before_there_were_other_risks_are_unchanged() -> None:
    """The digest that files carry and monitors remember, as the first version wrote it."""
    assert certificate().sha256 == "cfa8084e5b6b48191c22acaa5b8e159972769df35e6b311490fbd9cb0545bd66"


def test_other_weights_or_tokenizer_are_refused() -> None:
    made = certificate()
    made.check(weights_sha256=sha("weights"), tokenizer_sha256=sha("tokenizer"))
    with pytest.raises(UserError, match=r"made for weights sha256 .* run `lit-eff calibrate`"):
        made.check(weights_sha256=sha("others"), tokenizer_sha256=sha("tokenizer"))
    with pytest.raises(UserError, match="made for tokenizer"):
        made.check(weights_sha256=sha("weights"), tokenizer_sha256=None)


def test_tokenizer_hash_is_that_of_the_file(tmp_path: Path) -> None:
    text = '{"model": "é"}'
    (tmp_path / "tokenizer.json").write_bytes(text.encode())
    assert tokenizer_sha256(text) == hashlib.sha256((tmp_path / "tokenizer.json").read_bytes()).hexdigest()
    assert tokenizer_sha256(None) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": (0.7, 0.5)}, "thresholds differ"),
        ({"thresholds": (0.7,)}, "1 entries for 2 early exits"),
        ({"selected": 2}, "not a certified candidate"),
        ({"selected": 7}, "not a certified candidate"),
        ({"selected": None, "thresholds": (None, None)}, "although a candidate is certified"),
        ({"test": measured("calibration", 0.1, 5.0)}, "must be disjoint"),
        ({"train_sha256": sha("test")}, "must be disjoint"),
        ({"delta": 0.0}, "greater than 0"),
        ({"measure": "vibes"}, "softmax_response"),
        ({"certifies": "vibes"}, "textual_consistency"),
        ({"metric": "vibes"}, "neither a known one nor package.module:function"),
        ({"metric": "zero_one"}, "neither a known one"),
        ({"kv_policy": None}, "kv_policy is null"),
        ({"certifies": "error"}, "error is of a classifier"),
        ({"certifies": "risk_consistency", "prompt_length": None}, "references follow prompts"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        certificate(**changes)


def set_field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.__setitem__(name, value)


TAMPERED: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (set_field("delta", 0.1), "content_sha256"),
    (set_field("epsilon", 0.01), "content_sha256"),
    (lambda content: content["candidates"][1].__setitem__("p_value", 0.03), "content_sha256"),
    (lambda content: content["test"].__setitem__("risk", 0.01), "content_sha256"),
    (set_field("weights_sha256", sha("stolen")), "content_sha256"),
    (lambda content: content.pop("content_sha256"), "content_sha256"),
    (set_field("thresholds", [0.1, 0.1]), "thresholds differ"),
    (lambda content: content.pop("kv_policy"), "kv_policy"),
    (set_field("kv_policy", "copy"), "kv_policy"),
    (set_field("extra", 1), "extra"),
    (set_field("delta", "much"), "delta"),
    (lambda content: content["calibration"].__setitem__("risk", 2.0), r"calibration\.risk"),
    (set_field("weights_sha256", "short"), "weights_sha256"),
    (set_field("format_version", 2), "format_version is 2"),
    (lambda content: content.pop("format_version"), "format_version is None"),
]


@pytest.mark.parametrize(("tamper", "named"), TAMPERED)
def test_altered_files_are_refused_naming_file_and_field(
    tamper: Callable[[dict[str, Any]], Any], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "exits.json"
    certificate().save(path)
    content = json.loads(path.read_text())
    tamper(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=named) as caught:
        Certificate.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"never"'])
def test_files_that_are_no_certificate_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "exits.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"exits\.json"):
        Certificate.load(path)
    with pytest.raises(UserError, match="no certificate at"):
        Certificate.load(tmp_path / "absent.json")


def test_a_failed_write_leaves_the_previous_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "exits.json"
    certificate().save(path)

    def full_disk(self: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="no space"):
        never().save(path)
    monkeypatch.undo()
    assert Certificate.load(path) == certificate()
