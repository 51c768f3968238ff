"""Runs the app on a port until a signal ends it: requests under way get time to finish."""

from __future__ import annotations

import socket

import uvicorn

from lit_eff.errors import UserError
from lit_eff.runtime.text import TextEngine
from lit_eff.serving.app import create_app
from lit_eff.serving.config import ServeConfig


def listen(config: ServeConfig) -> socket.socket:
    """A listening socket, taken before anything slow is done.

    Raises:
        UserError: when the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"cannot listen on {config.host} port {config.port}: {reason}; choose another with --port"
        ) from None


def make_server(engine: TextEngine, config: ServeConfig) -> uvicorn.Server:
    """The server; ``run(sockets=[listener])`` serves until SIGINT or SIGTERM.

    Then no new connection is taken, requests under way get ``shutdown_seconds``, and the signal is raised
    again.
    """
    settings = uvicorn.Config(
        create_app(engine, config),
        timeout_graceful_shutdown=config.shutdown_seconds,
        log_level="info",
        server_header=False,
    )
    return uvicorn.Server(settings)
