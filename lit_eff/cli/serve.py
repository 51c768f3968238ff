"""``lit-eff serve``: an OpenAI-compatible server over a bundle."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from rich.console import Console

from lit_eff.cli.arguments import UNCERTIFIED_HELP, Parser
from lit_eff.runtime.claim import sentence
from lit_eff.runtime.manifest import read_manifest
from lit_eff.runtime.text import TextEngine
from lit_eff.serving.config import FALLBACKS, ServeConfig
from lit_eff.serving.server import listen, make_server


def main(argv: list[str]) -> int:
    """Serve until interrupted; exit code 0 then."""
    options = vars(_parser().parse(argv))
    bundle, uncertified = options.pop("bundle"), options.pop("uncertified")
    given = {name: value for name, value in options.items() if value is not None}
    ServeConfig(**given)  # the command line's own mistakes first
    config = replace(ServeConfig.from_dict(read_manifest(bundle).serve), **given)
    notes = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    with listen(config) as listener:
        with notes.status(f"Opening {bundle}"):
            engine = TextEngine.open(bundle, threads=config.threads, uncertified=uncertified)
        name = config.model_name or engine.name
        address = f"http://{config.host}:{listener.getsockname()[1]}"
        notes.print(
            f"Serving {name!r} at {address}/v1/completions (also /v1/models, /health, /metrics, "
            f"/monitor{', /trace' if config.trace is not None else ''})."
        )
        notes.print(_certified_sentence(engine))
        # The usual way to stop is an interrupt, which as a rule is raised again after the graceful shutdown.
        with suppress(KeyboardInterrupt):
            make_server(engine, config).run(sockets=[listener])
        notes.print("Stopped.")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="lit-eff serve",
        description=__doc__,
        epilog="What is not given comes from the recipe's serve section, kept in the bundle, and then from "
        "the defaults in parentheses.",
    )
    defaults = ServeConfig()
    add = parser.add_argument
    add("--bundle", required=True, metavar="DIR", help="a folder that `lit-eff export` wrote")
    add("--host", help=f"where to listen ({defaults.host})")
    add("--port", type=int, help=f"0 takes a free one ({defaults.port})")
    add("--model-name", metavar="NAME", help="what clients call the model (the folder's name)")
    add("--threads", type=int, metavar="N", help="of the engine (one per core)")
    add("--max-active", type=int, metavar="N", help=f"requests that take turns ({defaults.max_active})")
    add("--max-waiting", type=int, metavar="N", help=f"requests that may wait ({defaults.max_waiting})")
    share = f"of certified requests, run in full too ({defaults.shadow_share:g})"
    add("--shadow-share", type=float, metavar="SHARE", help=share)
    add("--fallback", choices=FALLBACKS, help=f"what the monitor's alarm does ({defaults.fallback})")
    add("--monitor-state", metavar="FILE", help="keeps the monitor's state over restarts (in memory only)")
    add("--traffic-log", metavar="FILE", help="append certified requests' prompts, to calibrate on (off)")
    add("--trace", metavar="FILE", help="the last rounds as a .json.gz for Perfetto, at the end (off)")
    add("--uncertified", metavar="THRESHOLDS", help=UNCERTIFIED_HELP)
    return parser


def _certified_sentence(engine: TextEngine) -> str:
    if engine.uncertified is not None:
        return "Mode certified runs with thresholds set by hand: nothing is guaranteed."
    if engine.certificate is None:
        return "Mode certified is off: the bundle has no certificate."
    return f"Mode certified: {sentence(engine.certificate)}"
