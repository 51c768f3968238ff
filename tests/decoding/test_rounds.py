"""Rounds and their calls as spans: all of them, nested, in the stage they belong to."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest

from lit_eff.decoding.rounds import OWN, RoundsProfile, profile_rounds
from lit_eff.profiling.report import ReportTable
from lit_eff.runtime.decode import GenerateRequest, generate
from lit_eff.runtime.exit_rule import ExitRule
from tests.runtime.fakes import TinyTransformer

PROMPT, TOKENS = (1, 2, 3), 9
REQUESTS = (
    GenerateRequest(PROMPT, TOKENS, "autoregressive"),
    GenerateRequest(PROMPT, TOKENS, "certified", exit_rule=ExitRule(thresholds=(0.5, 0.5))),
    GenerateRequest(PROMPT, TOKENS, "lossless", draft_exit=1, draft_length=2),
)


class SlowHead(TinyTransformer):
    def head(self, e: int, hidden_TC: Any) -> Any:
        time.sleep(0.002)
        return super().head(e, hidden_TC)


@pytest.fixture(scope="module")
def profile() -> RoundsProfile:
    return profile_rounds(SlowHead(), REQUESTS)


def rows_of(table: ReportTable) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_every_round_and_call_is_a_span(profile: RoundsProfile) -> None:
    runner = TinyTransformer()
    for request in REQUESTS:
        runner.segment_calls.clear()
        runner.head_calls.clear()
        rounds = list(generate(runner, request))
        spans = [span for span in profile.timeline.spans if span.track == f"decoding/{request.mode}"]
        whole = [span for span in spans if "mode" in span.details]
        calls = [span for span in spans if "mode" not in span.details]
        assert len(whole) == len(rounds)
        assert [span.details["tokens"] for span in whole] == [len(one.tokens) for one in rounds]
        assert sum("layers" in span.name for span in calls) == len(runner.segment_calls)
        heads = [span for span in calls if "head" in span.name]
        assert [span.details["tokens"] for span in heads] == [rows for _, rows in runner.head_calls]
        for span in calls:  # each within a round
            assert any(
                one.start - 1e-4 <= span.start
                and span.start + span.duration <= one.start + one.duration + 1e-4
                for one in whole
            )
        ends = [(one.start, one.start + one.duration) for one in whole]
        assert all(a[1] <= b[0] + 1e-9 for a, b in pairwise(ends))


def test_drafting_is_told_from_verifying(profile: RoundsProfile) -> None:
    calls = [
        s.name for s in profile.timeline.spans if s.track == "decoding/lossless" and "mode" not in s.details
    ]
    assert {"draft: layers 1-1", "draft: layers 2-2", "draft: head of layer 2"} <= set(calls)
    assert {"verify: layers 3-4", "verify: head of layer 4"} <= set(calls)
    assert not {"draft: layers 3-4", "draft: head of layer 4", "verify: head of layer 2"} & set(calls)
    stages = {row["stage"]: row for row in rows_of(profile.tables[1]) if row["mode"] == "lossless"}
    assert stages["verify: head of layer 4"]["calls a round"] == 1.0
    assert 1 < stages["verify: head of layer 4"]["tokens a call"] <= 3


def test_tables_account_for_all_time(profile: RoundsProfile) -> None:
    modes = {row["mode"]: row for row in rows_of(profile.tables[0])}
    assert list(modes) == ["autoregressive", "certified", "lossless"]
    assert modes["autoregressive"]["rounds"] == TOKENS - 1  # the first is apart
    assert modes["autoregressive"]["layers a token"] == 4.0
    assert modes["certified"]["layers a token"] < 4.0
    assert 0 <= modes["lossless"]["drafts accepted"] <= 1
    assert modes["lossless"]["tokens a round"] > 1
    for mode, sums in modes.items():
        stages = [row for row in rows_of(profile.tables[1]) if row["mode"] == mode]
        assert sum(row["ms a round"] for row in stages) == pytest.approx(sums["ms a round"])
        assert sum(row["share"] for row in stages) == pytest.approx(1)
        (own,) = (row for row in stages if row["stage"] == OWN)
        assert 0 < own["share"] < 0.5
        heads = sum(row["ms a round"] for row in stages if "head" in row["stage"])
        assert heads > 2.0 * sum(row["calls a round"] for row in stages if "head" in row["stage"])


def test_the_exits_taken(profile: RoundsProfile) -> None:
    rounds = list(generate(TinyTransformer(), REQUESTS[1]))
    taken = [TinyTransformer().exit_layers[one.exit_index] for one in rounds if one.exit_index is not None]
    rows = {row["layer"]: row for row in rows_of(profile.tables[2]) if row["mode"] == "certified"}
    assert {layer: row["tokens"] for layer, row in rows.items()} == {
        layer: taken.count(layer) for layer in sorted(set(taken))
    }
    assert len(rows) > 1
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)
