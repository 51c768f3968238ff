"""``lit-eff generate``: text from a bundle, its speed, and with ``--trace`` how each round went."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from lit_eff.cli.arguments import UNCERTIFIED_HELP, Parser
from lit_eff.runtime.decode import MODES, Round
from lit_eff.runtime.summary import Summary
from lit_eff.runtime.text import PreparedRequest, TextChunk, TextEngine, TextRequest


def main(argv: list[str]) -> int:
    """Text goes to standard output and notes to standard error, so that ``> file`` holds the text."""
    options = _parser().parse(argv)
    notes = Console(stderr=True, highlight=False)
    with notes.status(f"Opening {options.bundle}"):
        engine = TextEngine.open(options.bundle, threads=options.threads, uncertified=options.uncertified)
    request = _request(options, engine)
    prepared = engine.prepare(request)
    baseline = None
    if options.compare:
        with notes.status("Generating autoregressively, to compare"):
            baseline = _baseline(engine, request)
    chunks = _write(engine, prepared, options)
    report = _report(engine, prepared, chunks, baseline)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        notes.print(_sentence(report), style="dim", markup=False, soft_wrap=True)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="lit-eff generate", description=__doc__)
    add = parser.add_argument
    add("--bundle", required=True, metavar="DIR", help="a folder that `lit-eff export` wrote")
    add("--prompt", required=True, metavar="TEXT", help="what to continue; - reads standard input")
    add("--mode", choices=MODES, help="default: the bundle's")
    add("--max-tokens", type=int, metavar="N", help="default: the bundle's")
    add("--temperature", type=float, metavar="T", help="0 is greedy; default: the bundle's")
    add("--top-k", type=int, metavar="K", help="keep the K most probable tokens")
    add("--top-p", type=float, metavar="P", help="keep the fewest tokens that reach P together")
    add("--min-p", type=float, metavar="P", help="keep tokens at least P times as probable as the best")
    add("--seed", type=int, metavar="N", help="makes sampled text repeatable")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be repeated")
    add("--draft-exit", type=layer, metavar="LAYER", help="the exit that drafts, or auto (lossless)")
    add("--draft-length", type=int, metavar="G", help="tokens drafted a round (lossless)")
    add("--uncertified", metavar="THRESHOLDS", help=UNCERTIFIED_HELP)
    add("--threads", type=int, metavar="N", help="of the engine; default: one per core")
    add("--trace", action="store_true", help="a line per round: accepted, rejected and own tokens")
    add("--compare", action="store_true", help="generate autoregressively too, and compare")
    add("--json", action="store_true", help="print text and figures as JSON")
    return parser


def layer(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _request(options: argparse.Namespace, engine: TextEngine) -> TextRequest:
    defaults = engine.decoding
    names = ("temperature", "top_k", "top_p", "min_p", "seed")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return TextRequest(
        prompt=sys.stdin.read() if options.prompt == "-" else options.prompt,
        max_tokens=defaults.max_tokens if options.max_tokens is None else options.max_tokens,
        mode=options.mode or defaults.mode,
        sampling=replace(defaults.sampling, **given),
        stop=tuple(options.stop),
        draft_exit=options.draft_exit,
        draft_length=options.draft_length,
    )


def _write(engine: TextEngine, prepared: PreparedRequest, options: argparse.Namespace) -> list[TextChunk]:
    """Stream the text (or the trace) to the terminal."""
    chunks = []
    trace = Console(highlight=False, soft_wrap=True, stderr=options.json)
    for chunk in engine.stream(prepared):
        chunks.append(chunk)
        if options.trace:
            trace.print(trace_line(engine, len(chunks), chunk.round))
        elif not options.json:
            print(chunk.text, end="", flush=True)
    if not options.json:
        print("".join(chunk.text for chunk in chunks) if options.trace else "")
    return chunks


def trace_line(engine: TextEngine, number: int, one: Round) -> Text:
    """One round: accepted drafts green, rejected red, the target's own token blue, and the exit's layer."""

    def piece(token: int) -> str:
        text = engine.tokenizer.decode([token], skip_special_tokens=False)
        return text.replace("\n", "⏎").replace("\r", "␍") or f"<{token}>"

    def shown(tokens: tuple[int, ...], style: str) -> Text:
        return Text("·".join(piece(token) for token in tokens), style=style)

    parts = [
        shown(one.tokens[: one.accepted], "green"),
        shown(one.drafted[one.accepted :], "red strike"),
        shown(one.tokens[one.accepted :], "bold blue"),
    ]
    if one.exit_index is not None:
        layers = engine.runner.exit_layers
        where = f"layer {layers[one.exit_index]:>2} of {layers[-1]}"
    else:
        where = f"{one.accepted} of {len(one.drafted)} drafts"
    head = Text.assemble((f"{number:4d}  {where:<14}  {one.seconds * 1e3:7.2f} ms  ", "dim"))
    return head + Text(" ").join(part for part in parts if part)


def _baseline(engine: TextEngine, request: TextRequest) -> list[TextChunk]:
    """The same request autoregressively, after a few tokens of each mode to warm the engine up."""
    plain = replace(request, mode="autoregressive")
    for warm in (request, plain):
        list(engine.stream(engine.prepare(replace(warm, max_tokens=min(8, request.max_tokens)))))
    return list(engine.stream(engine.prepare(plain)))


def _report(
    engine: TextEngine, prepared: PreparedRequest, chunks: list[TextChunk], baseline: list[TextChunk] | None
) -> dict[str, Any]:
    exit_layers = engine.runner.exit_layers
    summary = Summary.of((chunk.round for chunk in chunks), exit_layers)
    request = prepared.tokens
    report: dict[str, Any] = {
        "text": "".join(chunk.text for chunk in chunks),
        "finish_reason": chunks[-1].finish_reason,
        "mode": request.mode,
        "promise": engine.promise(prepared),
        "prompt_tokens": len(request.prompt_tokens),
        "completion_tokens": chunks[-1].completion_tokens,
        "seconds": summary.seconds,
        "tokens_per_second": summary.tokens_per_second,
        "rounds": summary.rounds,
        "layers_per_token": summary.layers_per_token,
        "exits": summary.exits,
        "layers": exit_layers[-1],
        "source": "measured",
    }
    if request.mode == "lossless":
        report |= {
            "draft_exit": exit_layers[request.draft_exit],
            "draft_length": request.draft_length,
            "drafted": summary.drafted,
            "accepted": summary.accepted,
            "acceptance": summary.acceptance,
        }
    if baseline is not None:
        plain = Summary.of((chunk.round for chunk in baseline), exit_layers)
        report["autoregressive"] = {
            "tokens_per_second": plain.tokens_per_second,
            "speedup": summary.tokens_per_second / plain.tokens_per_second,
            "identical": report["text"] == "".join(chunk.text for chunk in baseline),
        }
    return report


def _sentence(report: dict[str, Any]) -> str:
    parts = [f"{report['completion_tokens']} tokens at {report['tokens_per_second']:.1f} tokens/s"]
    if report["mode"] == "lossless":
        share = (
            "nothing drafted"
            if report["acceptance"] is None
            else f"{report['acceptance']:.0%} of drafts accepted"
        )
        parts.append(f"{share} (exit {report['draft_exit']}, {report['draft_length']} a round)")
    parts.append(f"{report['layers_per_token']:.2f} of {report['layers']} layers launched per token")
    if "autoregressive" in report:
        plain = report["autoregressive"]
        same = "identical" if plain["identical"] else "different"
        parts.append(f"{plain['speedup']:.2f}x autoregressive, {same} text")
    return f"[{report['mode']}] {'; '.join(parts)}. {report['promise']}"
