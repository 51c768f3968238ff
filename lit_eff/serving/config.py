"""The ``serve`` section of a recipe, and the options of ``lit-eff serve``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lit_eff.errors import UserError, nearest


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

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UserError(f"serve.port is {self.port}; expected 0 to 65535")
        for name, least in (
            ("max_active", 1),
            ("max_waiting", 0),
            ("max_body_bytes", 1),
            ("shutdown_seconds", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"serve.{name} is {getattr(self, name)}; expected at least {least}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ServeConfig:
        """From a manifest; raises UserError for a key this version does not know."""
        for key in values:
            if key not in cls.__dataclass_fields__:
                raise UserError(f"unknown serve setting {key!r}{nearest(key, cls.__dataclass_fields__)}")
        return cls(**values)
