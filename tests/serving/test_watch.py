"""The monitor in the server: what is counted, when it is run, and what an alarm does.

The scripted model's exits are wrong at every third slot and confident everywhere, so a continuation of six
tokens loses exactly a third under any threshold.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lit_eff.errors import UserError
from lit_eff.runtime.betting import RiskTest
from lit_eff.runtime.exit_rule import ExitRule
from lit_eff.runtime.monitor import Monitor
from lit_eff.runtime.prompts import read_prompts
from lit_eff.runtime.text import TextEngine
from lit_eff.serving.app import create_app
from lit_eff.serving.config import ServeConfig
from tests.runtime.fakes import scripted_engine
from tests.runtime.test_certificate import certificate, never
from tests.serving.test_app import client_of, until

LOSS, DELTA = 1 / 3, 0.1
ASK = {"prompt": "", "max_tokens": 9, "temperature": 0, "mode": "certified"}


def watched_engine(text: str = "x" * 60, **changes: Any) -> TextEngine:
    values = {"delta": DELTA, "exit_layers": (1, 2, 3), "decay": None, "continuation_length": 6, **changes}
    return scripted_engine(text, certificate=certificate(**values))


def losses_to_alarm(alpha: float = 0.01) -> int:
    test = RiskTest(DELTA, alpha)
    while not test.update(LOSS):
        pass
    return test.count


def serving(
    engine: TextEngine, scenario: Callable[[httpx.AsyncClient], Awaitable[Any]], **settings: Any
) -> Any:
    async def main() -> Any:
        async with client_of(engine, **{"shadow_share": 1.0, **settings}) as client:
            return await scenario(client)

    return asyncio.run(main())


async def monitored(client: httpx.AsyncClient, count: int) -> dict[str, Any]:
    """The report once that many requests were run in full or skipped."""
    for _ in range(400):
        report: dict[str, Any] = (await client.get("/monitor")).json()
        if report["run_in_full"] + report["skipped"] >= count:
            return report
        await asyncio.sleep(0.01)
    raise AssertionError(report)


async def ask(client: httpx.AsyncClient, count: int = 1, **changes: Any) -> list[dict[str, Any]]:
    answers = [await client.post("/v1/completions", json={**ASK, **changes}) for _ in range(count)]
    assert all(answer.status_code == 200 for answer in answers), answers[0].text
    return [answer.json() for answer in answers]


def test_the_risk_is_measured_on_the_certificates_terms() -> None:
    """Six tokens each, whether the answer was of one token or of nine, or ended by a stop string."""

    async def scenario(client: httpx.AsyncClient) -> Any:
        await ask(client, max_tokens=1)
        await ask(client, max_tokens=9)
        await ask(client, stop=["x"])
        await ask(client, prompt=["", "a"])
        report = await monitored(client, 5)
        families = text_string_to_metric_families((await client.get("/metrics")).text)
        samples = {
            (s.name, s.labels.get("layer"), s.labels.get("le")): s.value for f in families for s in f.samples
        }
        return report, samples, (await client.get("/v1/models/tiny")).json()

    report, samples, card = serving(watched_engine(), scenario)
    assert (report["requests"], report["run_in_full"], report["skipped"]) == (5, 5, 0)
    assert report["risk"] == pytest.approx(LOSS)
    assert report["risk_interval"][0] <= LOSS <= report["risk_interval"][1]
    assert report["layers_per_token"] == 1.0
    assert (report["alarm"], report["exits_off"]) == (False, False)
    assert samples["lit_eff_risk", None, None] == pytest.approx(LOSS)
    assert samples["lit_eff_risk_limit", None, None] == DELTA
    assert samples["lit_eff_risk_log_wealth", None, None] == pytest.approx(report["log_wealth"])
    assert samples["lit_eff_shadow_requests_total", None, None] == 5
    assert samples["lit_eff_alarm", None, None] == 0
    tokens = report["tokens_by_layer"]["1"]
    assert tokens > 5
    assert samples["lit_eff_confidence_bucket", "1", "0.9"] == 0
    assert samples["lit_eff_confidence_bucket", "1", "+Inf"] == tokens
    assert "5 were run in full" in card["monitor"]


@pytest.mark.parametrize(("metric", "loss"), [("exact_match", 1.0), ("edit_distance", LOSS)])
def test_metrics_of_tokens_are_measured(metric: str, loss: float) -> None:
    async def scenario(client: httpx.AsyncClient) -> Any:
        await ask(client, 3)
        return await monitored(client, 3)

    report = serving(watched_engine(metric=metric), scenario)
    assert (report["run_in_full"], report["skipped"]) == (3, 0)
    assert report["risk"] == pytest.approx(loss)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"metric": "rouge_l"}, "the metric rouge_l is of text"),
        ({"metric": "my.code:loss"}, "the metric my.code:loss is of text"),
        ({"certifies": "risk_consistency"}, "risk consistency needs a reference text"),
    ],
)
def test_a_risk_that_cannot_be_watched_is_said_and_exits_are_counted(
    changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async def scenario(client: httpx.AsyncClient) -> Any:
        await ask(client, 2)
        return await monitored(client, 0), (await client.get("/v1/models/tiny")).json()

    log = tmp_path / "log.jsonl"
    with caplog.at_level(logging.INFO, logger="uvicorn.error"):
        report, card = serving(watched_engine(**changes), scenario, traffic_log=str(log))
    assert (report["run_in_full"], report["skipped"], report["risk"]) == (0, 0, None)
    assert sum(report["tokens_by_layer"].values()) == 18
    assert sum(report["confidences_by_layer"]["1"]) == 18
    for sentence in (report["sentence"], card["monitor"], caplog.text):
        assert f"cannot be watched here: {reason}" in sentence
    assert len(log.read_text().splitlines()) == 2


def test_what_the_certificate_does_not_speak_of_is_not_counted() -> None:
    async def scenario(client: httpx.AsyncClient) -> Any:
        await ask(client, temperature=1.0, seed=1)
        await ask(client, presence_penalty=0.5)
        await ask(client, logit_bias={"5": 1.0})
        await ask(client, mode="autoregressive")
        await ask(client, mode="lossless")
        await ask(client, prompt="y" * 62, max_tokens=2)  # no room for six tokens
        assert (await monitored(client, 0))["requests"] == 0
        await ask(client)
        return await monitored(client, 1)

    report = serving(watched_engine(), scenario)
    assert (report["requests"], report["run_in_full"]) == (1, 1)
    assert sum(report["tokens_by_layer"].values()) == 9


def test_an_alarm_can_turn_exits_off(caplog: pytest.LogCaptureFixture) -> None:
    needed = losses_to_alarm()

    async def scenario(client: httpx.AsyncClient) -> Any:
        (early, *_) = await ask(client, needed - 1)
        before = await monitored(client, needed - 1)
        await ask(client)
        await monitored(client, needed)
        (full,) = await ask(client)
        (plain,) = await ask(client, mode="autoregressive")
        (sampled,) = await ask(client, temperature=1.0, seed=0)
        metrics = (await client.get("/metrics")).text
        return before, early, full, plain, sampled, metrics, (await client.get("/v1/models/tiny")).json()

    with caplog.at_level(logging.ERROR, logger="uvicorn.error"):
        before, early, full, plain, sampled, metrics, card = serving(
            watched_engine(), scenario, fallback="never_exit"
        )
    assert before["alarm"] is False
    assert early["lit_eff"]["layers_per_token"] == 1
    assert "With probability at least" in early["lit_eff"]["promise"]
    for answer in (full, sampled):
        assert answer["lit_eff"]["layers_per_token"] == 3
        assert (answer["lit_eff"]["alarm"], answer["lit_eff"]["exits_off"]) == (True, True)
        assert "exits are off" in answer["lit_eff"]["promise"]
    assert full["choices"] == plain["choices"]
    assert early["choices"] != plain["choices"]
    assert "lit_eff_alarm 1.0" in metrics
    assert "lit_eff_exits_off 1.0" in metrics
    assert card["monitor"].startswith("ALARM")
    (line,) = [record.message for record in caplog.records if "ALARM" in record.message]
    assert line.startswith("Monitor: ALARM")
    assert line.endswith("Exits are off.")


def test_without_a_fallback_an_alarm_only_tells(caplog: pytest.LogCaptureFixture) -> None:
    needed = losses_to_alarm()

    async def scenario(client: httpx.AsyncClient) -> Any:
        await ask(client, needed)
        await monitored(client, needed)
        return await ask(client, 2)

    with caplog.at_level(logging.ERROR, logger="uvicorn.error"):
        answers = serving(watched_engine(), scenario)
    for answer in answers:
        assert answer["lit_eff"]["layers_per_token"] == 1
        assert (answer["lit_eff"]["alarm"], answer["lit_eff"]["exits_off"]) == (True, False)
        assert "alarm was raised" in answer["lit_eff"]["promise"]
    assert sum("Exits stay on" in record.message for record in caplog.records) == 1


def test_clients_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampled request of many rounds stops for a client, whose rounds none of its own come between."""
    engine = watched_engine("x" * 300, continuation_length=200)
    log: list[str] = []
    step, stream = engine.runner.embed, engine.stream

    def embed(*arguments: Any) -> Any:
        log.append("round")
        time.sleep(0.001)
        return step(*arguments)

    def streamed(prepared: Any) -> Any:
        log.append("first")
        try:
            yield from stream(prepared)
        finally:
            log.append("last")

    monkeypatch.setattr(engine.runner, "embed", embed)
    monkeypatch.setattr(engine, "stream", streamed)

    async def scenario(client: httpx.AsyncClient) -> Any:
        await ask(client)
        await until(lambda: len(log) > 40)  # in the middle of running it in full
        report = (await client.get("/monitor")).json()
        await ask(client, max_tokens=7)
        return report, await monitored(client, 2)

    report, after = serving(engine, scenario)
    assert (report["run_in_full"], after["run_in_full"]) == (0, 2)
    firsts = [i for i, what in enumerate(log) if what == "first"]
    assert log[firsts[1] :].index("last") == 7 + 1, "rounds came between those of a client"


def test_the_state_survives_a_restart_and_so_does_the_alarm(tmp_path: Path) -> None:
    needed, path = losses_to_alarm(), tmp_path / "monitor.json"
    settings = {"monitor_state": str(path), "fallback": "never_exit"}

    async def some(client: httpx.AsyncClient) -> Any:
        await ask(client, needed - 1)
        return await monitored(client, needed - 1)

    async def one_more(client: httpx.AsyncClient) -> Any:
        await ask(client)
        return await monitored(client, needed)

    async def answer(client: httpx.AsyncClient) -> Any:
        return (await ask(client))[0]["lit_eff"]["layers_per_token"]

    assert serving(watched_engine(), some, **settings)["alarm"] is False
    assert serving(watched_engine(), one_more, **settings)["alarm_at"] == needed
    assert serving(watched_engine(), answer, **settings) == 3
    assert serving(watched_engine(epsilon=0.04), answer, **settings) == 1  # a new certificate
    path.write_text("{}")
    with pytest.raises(UserError, match=r"monitor\.json cannot be read"):
        create_app(watched_engine(), ServeConfig(monitor_state=str(path)))


def test_a_share_is_drawn_and_can_be_drawn_again() -> None:
    drawn = Monitor(certificate(), alpha=0.01)
    expected = sum(drawn.draw(0.3, seed=2) for _ in range(40))

    async def scenario(client: httpx.AsyncClient) -> Any:
        await ask(client, 40, max_tokens=1)
        return await monitored(client, expected)

    report = serving(watched_engine(), scenario, shadow_share=0.3, shadow_seed=2)
    assert 3 < report["run_in_full"] == expected < 25
    assert report["requests"] == 40


def test_a_failure_while_measuring_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = watched_engine()

    async def scenario(client: httpx.AsyncClient) -> Any:
        with monkeypatch.context() as broken:
            broken.setattr("lit_eff.serving.watch.compare", lambda *_: map(int, ["no number"]))
            await ask(client)
            assert (await monitored(client, 1))["skipped"] == 1
        await ask(client)
        return await monitored(client, 2)

    report = serving(engine, scenario)
    assert (report["run_in_full"], report["skipped"]) == (1, 1)


@pytest.mark.parametrize(
    "settings",
    [{}, {"uncertified": ExitRule(thresholds=(0.9, 0.9)), "certificate": certificate(exit_layers=(1, 2, 3))}],
)
def test_nothing_to_watch_is_said(settings: dict[str, Any], tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> httpx.Response:
        assert (await client.get("/v1/models/tiny")).json()["monitor"] is None
        return await client.get("/monitor")

    response = serving(scripted_engine("x", **settings), scenario)
    assert response.status_code == 404
    assert "nothing to monitor" in json.dumps(response.json())
    with pytest.raises(UserError, match="no certificate is in use"):
        create_app(scripted_engine("x", **settings), ServeConfig(traffic_log=str(tmp_path / "log.jsonl")))


def test_a_certificate_that_never_exits_is_logged_and_not_measured(tmp_path: Path) -> None:
    engine = scripted_engine("x" * 60, certificate=never(exit_layers=(1, 2, 3)))

    async def scenario(client: httpx.AsyncClient) -> Any:
        await ask(client)
        return await monitored(client, 0)

    report = serving(engine, scenario, traffic_log=str(tmp_path / "log.jsonl"))
    assert "no risk to watch" in report["sentence"]
    assert (report["requests"], report["layers_per_token"]) == (0, 3.0)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_the_traffic_log_holds_what_the_certificate_speaks_of(tmp_path: Path) -> None:
    path = tmp_path / "new" / "log.jsonl"
    path.parent.mkdir()
    path.write_text('{"prompt_tokens": [1, 2')  # an earlier server was killed

    async def scenario(client: httpx.AsyncClient) -> None:
        await ask(client, prompt="ab")
        await ask(client, prompt=[[5, 6], [7]])
        await ask(client, prompt="sampled", temperature=1.0)
        await ask(client, prompt="plain", mode="autoregressive")
        await ask(client, prompt="c")

    engine = watched_engine()
    serving(engine, scenario, traffic_log=str(path), shadow_share=0.0)
    cut, *lines = path.read_text().splitlines()
    assert cut == '{"prompt_tokens": [1, 2'
    path.write_text("\n".join(lines))
    expected = [
        tuple(engine.tokenizer.encode("ab").ids),
        (5, 6),
        (7,),
        tuple(engine.tokenizer.encode("c").ids),
    ]
    assert list(read_prompts(path, engine.tokenizer, 300)) == expected
    with pytest.raises(UserError, match="cannot write traffic log"):
        create_app(engine, ServeConfig(traffic_log=str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shadow_share": 1.5}, "serve.shadow_share is 1.5"),
        ({"alarm_alpha": 0.0}, "serve.alarm_alpha is 0.0"),
        ({"fallback": "never-exit"}, "did you mean 'never_exit'"),
        ({"shadow_seed": -1}, "serve.shadow_seed is -1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServeConfig(**settings)
