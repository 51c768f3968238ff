"""``lit-eff profile --diff BEFORE AFTER``: exit code 1 where a kernel moves more bytes than it did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from lit_eff.cli.arguments import Parser
from lit_eff.errors import UserError
from lit_eff.profiling.diff import TOLERANCE, compare, comparison_text
from lit_eff.profiling.report import load_report


def diff(argv: list[str]) -> int:
    """Print what changed between two profiles; 1 if a kernel moves more bytes, else 0."""
    parser = Parser(prog="lit-eff profile --diff", description=__doc__)
    parser.add_argument("--diff", action="store_true", required=True, help="what this is")
    parser.add_argument("before", type=Path, help="a run folder of lit-eff profile, or its profile.json")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="share that measured bytes may grow by (default %(default)s); counted and modelled are exact",
    )
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    options = parser.parse(argv)
    if not 0 <= options.tolerance < 1:
        raise UserError(f"--tolerance is {options.tolerance}; expected a share such as 0.02")
    before, after = (replace(load_report(path), name=str(path)) for path in (options.before, options.after))
    comparison = compare(before, after, options.tolerance)
    print(json.dumps(comparison.to_dict(), indent=1) if options.json else comparison_text(comparison))
    return int(comparison.more_bytes)
