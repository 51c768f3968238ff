"""The ``serve`` section of a recipe, and the options of ``lit-eff serve``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lit_eff.errors import UserError, nearest

Fallback = Literal["none", "never_exit"]
FALLBACKS: tuple[Fallback, ...] = get_args(Fallback)


@dataclass(frozen=True)
class ServeConfig:
    """How to serve a bundle.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        model_name: what clients call the model; ``None``: the name of the bundle's folder.
        threads: of the engine; ``None``: one per core.
        max_active: requests that take turns, a round each; every one holds a KV cache.
        max_waiting: requests that wait for a turn; more are refused with status 503.
        max_body_bytes: of a request.
        shutdown_seconds: how long requests under way may go on after a signal to stop.
        shadow_share: share of the requests a certificate covers that are run in full as well, after they
            were answered and while no request is under way, to measure the risk.
        shadow_seed: of the random numbers that choose them.
        alarm_alpha: probability with which the alarm may be false, over the life of a certificate.
        fallback: what an alarm does beside being told: ``none``, or ``never_exit``: certified mode runs
            every layer until a restart or a new certificate (with ``monitor_state``, until a new one).
            Requests already accepted keep their exits.
        monitor_state: file that keeps the monitor's state over restarts, the alarm included; ``None`` keeps
            it in memory.
        traffic_log: file to which the prompts of requests that a certificate covers are appended, as token
            ids, for ``lit-eff calibrate --update``; ``None`` keeps nothing. It holds what users wrote.
        trace: ``.json.gz`` file for the last rounds, to open in Perfetto, written when the server stops;
            ``GET /trace`` answers with them at any time. ``None`` keeps none. It holds no text.
        trace_rounds: how many.

    Raises:
        UserError: naming the setting that is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str | None = None
    threads: int | None = None
    max_active: int = 4
    max_waiting: int = 64
    max_body_bytes: int = 4 * 2**20
    shutdown_seconds: int = 30
    shadow_share: float = 0.01
    shadow_seed: int = 0
    alarm_alpha: float = 0.01
    fallback: Fallback = "none"
    monitor_state: str | None = None
    traffic_log: str | None = None
    trace: str | None = None
    trace_rounds: int = 10_000

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"serve.port is {self.port}; expected 0 to 65535")
        for name, least in (
            ("max_active", 1),
            ("max_waiting", 0),
            ("max_body_bytes", 1),
            ("shutdown_seconds", 0),
            ("shadow_seed", 0),
            ("trace_rounds", 1),
        ):
            if getattr(self, name) < least:
                raise UserError(f"serve.{name} is {getattr(self, name)}; expected at least {least}")
        if not 0.0 <= self.shadow_share <= 1.0:
            raise UserError(f"serve.shadow_share is {self.shadow_share}; expected a number in [0, 1]")
        if not 0.0 < self.alarm_alpha < 1.0:
            raise UserError(
                f"serve.alarm_alpha is {self.alarm_alpha}; expected a number strictly between 0 and 1"
            )
        if self.fallback not in FALLBACKS:
            raise UserError(f"unknown serve.fallback {self.fallback!r}{nearest(self.fallback, FALLBACKS)}")

        if self.trace is not None and not self.trace.endswith(".json.gz"):
            raise UserError(f"serve.trace is {self.trace!r}; expected a file name that ends in .json.gz")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServeConfig:
        """From a manifest; raises UserError for a key this version does not know."""
        for key in values:
            if key not in cls.__dataclass_fields__:
                raise UserError(f"unknown serve setting {key!r}{nearest(key, cls.__dataclass_fields__)}")
        return cls(**values)
