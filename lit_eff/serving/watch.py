"""Keeps a certificate true while it serves: counts exits, runs a share of requests in full, raises the alarm.

Which requests the certificate speaks of: those in certified mode whose tokens are the model's greedy ones.
Sampled text, penalties and logit biases are not counted, since calibration compared greedy tokens and a draw
differs from another draw whatever the exits do. Requests that failed or were left by their client are not
counted either, nor prompts that leave no room in the context for the certified continuation. The length of a
prompt is no condition: that live prompts are not what calibration saw is what the monitor is there to notice.

A sampled request is compared on the certificate's own terms: as many tokens, without stop tokens, with the
certificate's exit rule (even while the fallback keeps it from serving). A risk that cannot be measured here
(of text metrics, or against a reference) is not watched, and the monitor says so; exits and confidences are.
Of several risks the first that can be measured is.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Generator
from typing import Any

from lit_eff.errors import UserError
from lit_eff.runtime.certificate import Certificate
from lit_eff.runtime.decode import GenerateRequest, Round
from lit_eff.runtime.monitor import Monitor
from lit_eff.runtime.risk import Comparison, SequenceLoss, compare, watched
from lit_eff.runtime.text import TextEngine
from lit_eff.serving.config import ServeConfig
from lit_eff.serving.traffic_log import TrafficLog

_log = logging.getLogger("uvicorn.error")
MAX_WAITING = 64  # sampled requests that may wait for the server to be idle


class Watch:
    """The monitor of one engine. The decoding thread tells it of its work; any thread may read.

    Attributes:
        certificate: the one watched.
        skipped: sampled requests that were not run in full: too many waited, or running them failed.

    Raises:
        UserError: for a damaged ``monitor_state``, or a ``traffic_log`` that cannot be written.
    """

    def __init__(self, engine: TextEngine, certificate: Certificate, config: ServeConfig) -> None:
        self.certificate = certificate
        self.skipped = 0
        self._engine, self._config = engine, config
        self._rule = certificate.exit_rule()
        risk = watched(certificate)
        self._loss = None if risk is None else SequenceLoss.of(risk)
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, ...]] = deque()
        self._running: Generator[Round, None, Comparison] | None = None
        self._monitor = Monitor(certificate, alpha=config.alarm_alpha)
        if config.monitor_state is not None:
            self._monitor = Monitor.load(config.monitor_state, certificate, alpha=config.alarm_alpha)
        if self._monitor.test.alarm:
            self._act()
        self._traffic = None if config.traffic_log is None else TrafficLog(config.traffic_log)

    @classmethod
    def of(cls, engine: TextEngine, config: ServeConfig) -> Watch | None:
        """``None`` where there is nothing to watch: no certificate is in use."""
        certificate = engine.certificate
        if certificate is None or engine.uncertified is not None:
            if config.traffic_log is not None:
                raise UserError(
                    "serve.traffic_log keeps certified requests, and no certificate is in use here"
                )
            return None
        return cls(engine, certificate, config)

    def covers(self, request: GenerateRequest) -> bool:
        """Whether the certificate speaks of a request (see above)."""
        sampling = request.sampling
        plain = sampling.greedy and not sampling.reads_history and not sampling.logit_bias
        longest = self._engine.runner.context - self.certificate.continuation_length
        return request.mode == "certified" and plain and len(request.prompt_tokens) <= longest

    def observe(self, request: GenerateRequest, one: Round) -> None:
        """Count a round of a live request."""
        if request.exit_rule == self._rule and self.covers(request):
            with self._lock:
                self._monitor.observe(one)

    def answered(self, request: GenerateRequest) -> None:
        """Log a request, and choose whether to run it in full, now that its answer went out."""
        if not self.covers(request):
            return
        if self._traffic is not None:
            self._traffic.write(request.prompt_tokens)
        if self.certificate.selected is None or self._loss is None:
            return  # it never exits, so nothing could differ; or the risk cannot be measured
        with self._lock:
            chosen = self._monitor.draw(self._config.shadow_share, self._config.shadow_seed)
        if chosen and len(self._waiting) < MAX_WAITING:
            self._waiting.append(request.prompt_tokens)
        elif chosen:
            self.skipped += 1

    @property
    def pending(self) -> bool:
        """Whether :meth:`step` has something to do."""
        return self._running is not None or bool(self._waiting)

    def step(self) -> None:
        """One round of the oldest sampled request: call it while no client waits."""
        if self._running is None:
            assert self._loss is not None
            prompt = self._waiting.popleft()
            steps = self.certificate.continuation_length
            self._running = compare(self._engine.runner, prompt, self._rule, steps, self._loss)
        try:
            next(self._running)
        except StopIteration as end:
            self._running = None
            self._learn(end.value)
        except Exception:
            self._running = None
            self.skipped += 1
            _log.exception("running a request in full failed; the monitor goes on without it")

    def close(self) -> None:
        """Save the state a last time and close the traffic log, when the decoding thread has ended."""
        self.save()
        if self._traffic is not None:
            self._traffic.close()

    def save(self) -> None:
        """Write the state file, if there is to be one; a failure is logged and serving goes on."""
        if self._config.monitor_state is None:
            return
        try:
            with self._lock:
                self._monitor.save(self._config.monitor_state)
        except OSError as error:
            _log.error("cannot write monitor state %s: %s", self._config.monitor_state, error)

    def report(self) -> dict[str, Any]:
        """:meth:`Monitor.report`, and what the server makes of it."""
        with self._lock:
            content = self._monitor.report()
        return {
            **content,
            "skipped": self.skipped,
            "shadow_share": self._config.shadow_share,
            "alarm": self._engine.alarm,
            "exits_off": self._engine.exits_off,
        }

    def sentence(self) -> str:
        """The state of the guarantee, and whether exits are off, in plain words."""
        with self._lock:
            text = self._monitor.sentence()
        if not self._engine.alarm:
            return text
        return f"{text} Exits {'are off' if self._engine.exits_off else 'stay on: serve.fallback is none'}."

    def announce(self) -> None:
        """Log :meth:`sentence`: at the start, and when the alarm is raised."""
        _log.log(logging.ERROR if self._engine.alarm else logging.INFO, "Monitor: %s", self.sentence())

    def _learn(self, comparison: Comparison) -> None:
        with self._lock:
            raised = self._monitor.test.update(comparison.loss)
        self.save()
        if raised:
            self._act()
            self.announce()

    def _act(self) -> None:
        self._engine.alarm = True
        self._engine.exits_off = self._config.fallback == "never_exit"
