"""What ``/metrics`` shows, in Prometheus' text format."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from lit_eff.runtime.decode import Round

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """Counters of one server. Methods may be called from any thread."""

    def __init__(self, exit_layers: tuple[int, ...]) -> None:
        self._exit_layers = exit_layers
        registry = self._registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"lit_eff_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"lit_eff_{name}", help, ["mode"], buckets=buckets, registry=registry)

        self.requests = counter("requests", "Completed, cancelled, failed and refused", "mode", "outcome")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens read", "mode")
        self.tokens = counter("tokens", "Tokens emitted", "mode")
        self.rounds = counter("rounds", "Decoding rounds", "mode")
        self.drafted = counter("drafted_tokens", "Tokens drafted in mode lossless")
        self.accepted = counter("accepted_tokens", "Drafted tokens that were emitted")
        self.layer_tokens = counter("layer_tokens", "Layers x tokens computed", "mode")
        layers = [float(layer) for layer in exit_layers]
        self.exit_layer = histogram("exit_layer", "Layer a token left at (not in mode lossless)", layers)
        self.first_token_seconds = histogram(
            "time_to_first_token_seconds", "From arrival to the end of the first round", _SECONDS
        )
        self.request_seconds = histogram("request_seconds", "From arrival to the last token", _SECONDS)
        self.round_seconds = histogram("round_seconds", "Time of one round", _SECONDS)
        self._active = Gauge("lit_eff_active_requests", "Requests taking turns", registry=registry)
        self._waiting = Gauge("lit_eff_waiting_requests", "Requests waiting for a turn", registry=registry)

    def watch(self, active: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Read the gauges from here at every scrape."""
        self._active.set_function(active)
        self._waiting.set_function(waiting)

    def monitor(self, report: Callable[[], dict[str, Any]]) -> None:
        """Show what a monitor reports (:meth:`lit_eff.serving.watch.Watch.report`) at every scrape."""
        self._registry.register(_MonitorCollector(report))

    def observe(self, mode: str, one: Round) -> None:
        """Count one round."""
        self.rounds.labels(mode).inc()
        self.round_seconds.labels(mode).observe(one.seconds)
        self.tokens.labels(mode).inc(len(one.tokens))
        self.layer_tokens.labels(mode).inc(one.layer_tokens)
        if mode == "lossless":
            self.drafted.inc(len(one.drafted))
            self.accepted.inc(one.accepted)
        if one.exit_index is not None:
            self.exit_layer.labels(mode).observe(self._exit_layers[one.exit_index])

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self._registry)


class _MonitorCollector(Collector):
    """A monitor's report in Prometheus' terms. It is read, not counted again, so a restart loses nothing."""

    def __init__(self, report: Callable[[], dict[str, Any]]) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        report = self._report()
        low, high = report["risk_interval"]
        gauges = (
            ("risk", "Mean loss of the certified requests run in full", report["risk"]),
            ("risk_low", "Lower bound of the risk, at all times", low),
            ("risk_high", "Upper bound of the risk, at all times", high),
            ("risk_limit", "What the certificate allows", report["delta"]),
            ("risk_log_wealth", "Natural logarithm of the evidence against it", report["log_wealth"]),
            ("risk_alarm_log_wealth", "Where the alarm is raised", report["alarm_log_wealth"]),
            ("alarm", "1 once the certificate was found not to hold", report["alarm"]),
            ("exits_off", "1 while certified mode runs every layer", report["exits_off"]),
            ("certified_layers_per_token", "Mean layer that tokens left at", report["layers_per_token"]),
        )
        for name, about, value in gauges:
            if value is not None:
                yield GaugeMetricFamily(f"lit_eff_{name}", about, float(value))
        counters = (
            ("certified_requests", "Requests the certificate speaks of", report["requests"]),
            ("shadow_requests", "Of these, run in full as well", report["run_in_full"]),
            ("shadow_skipped", "Sampled and not run in full", report["skipped"]),
        )
        for name, about, value in counters:
            yield CounterMetricFamily(f"lit_eff_{name}", about, value)
        confidence = HistogramMetricFamily(
            "lit_eff_confidence", "Confidence at an exit, where no shallower one was taken", labels=["layer"]
        )
        for layer, bins in report["confidences_by_layer"].items():
            buckets = [(str((i + 1) / len(bins)), float(n)) for i, n in enumerate(itertools.accumulate(bins))]
            confidence.add_metric([layer], [*buckets, ("+Inf", buckets[-1][1])], None)
        yield confidence
