"""``lit-eff bench NAME``: our figures beside the peers' and the physical limits, in one run."""

from __future__ import annotations

import importlib

from lit_eff.errors import UserError, nearest

# Name of the module of lit_eff.bench, whose main(argv) runs it, and what it compares.
BENCHMARKS = {
    "attention": "training, decoding, verification beside their peers; --check on any machine",
    "head": "the output head's kernels: loss of many exits, their cost in training; --check on any machine",
    "decode_step": "a whole token of a model in one launch beside its peers; --check on any machine",
    "calibration": "layers saved by each p-value, beside an oracle and plain Hoeffding; simulated, on a CPU",
    "gpt2_training": "GPT-2 training steps with our attention, our model, and Hugging Face's",
}


def main(argv: list[str]) -> int:
    """Hand the rest of the line to the benchmark's own ``main``."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<16} {about}" for name, about in BENCHMARKS.items()]
        print("usage: lit-eff bench NAME [options]\n\nbenchmarks:\n" + "\n".join(lines))
        return 0 if argv else 2
    name, *rest = argv
    if name not in BENCHMARKS:
        raise UserError(f"no benchmark {name!r}{nearest(name, BENCHMARKS)}")
    exit_code: int = importlib.import_module(f"lit_eff.bench.{name}").main(rest)
    return exit_code
