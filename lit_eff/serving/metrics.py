"""What ``/metrics`` shows, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

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
