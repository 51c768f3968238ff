"""``lit-eff profile --plan``: hours, energy, carbon and cost of a training run before it is run, modelled."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console

from lit_eff.cli.arguments import Parser
from lit_eff.cli.profile_report import print_table
from lit_eff.profiling.carbon import KG_PER_KWH, PUE, Grid, lecture_table
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.plan import TrainingPlan


def plan(argv: list[str]) -> int:
    """Print the plan's table, and with ``--lecture`` the published runs beside what the formula gives."""
    parser = Parser(prog="lit-eff profile --plan", description=__doc__)
    parser.add_argument("--plan", action="store_true", required=True, help="what this is")
    parser.add_argument("--parameters", type=float, required=True, help="of the model, such as 7e9")
    parser.add_argument("--tokens", type=float, required=True, help="that training reads, such as 1e12")
    parser.add_argument("--gpus", type=int, default=8, help="how many (default %(default)s)")
    parser.add_argument("--device", default="H100 SXM", help="which (default %(default)s)")
    parser.add_argument(
        "--utilisation", type=float, default=0.4, help="share of the dense peak (default %(default)s)"
    )
    parser.add_argument("--dtype", default="bfloat16", help="of the peak (default %(default)s)")
    parser.add_argument("--watts", type=float, help="of one board; the device table's by default")
    parser.add_argument("--pue", type=float, default=PUE, help="of the data centre (default %(default)s)")
    parser.add_argument(
        "--kg-per-kwh", type=float, default=KG_PER_KWH, help="CO2e of the grid (default %(default)s)"
    )
    parser.add_argument("--price", type=float, help="of a GPU for an hour, in any currency")
    parser.add_argument("--lecture", action="store_true", help="show published runs by the same formula too")
    parser.add_argument("--json", action="store_true", help="print the tables as JSON")
    options = parser.parse(argv)
    device = get_device(options.device)
    planned = TrainingPlan(
        options.parameters,
        options.tokens,
        options.gpus,
        device,
        options.utilisation,
        device.board_power_watts if options.watts is None else options.watts,
        options.dtype,
        grid=Grid(options.pue, options.kg_per_kwh),
        price=options.price,
    )
    tables = [planned.table(), *([lecture_table()] if options.lecture else [])]
    if options.json:
        print(json.dumps([asdict(table) for table in tables], indent=1))
        return 0
    console = Console()
    for table in tables:
        print_table(table, console)
    return 0
