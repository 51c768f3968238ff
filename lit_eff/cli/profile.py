"""``lit-eff profile``: traces of training steps and the attention kernel's traffic, in TensorBoard."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_eff.cli.arguments import Parser
from lit_eff.errors import UserError
from lit_eff.kernels.attention.traffic import count_forward
from lit_eff.models.config import ModelConfig
from lit_eff.profiling.config import ProfileConfig
from lit_eff.profiling.devices import get_device
from lit_eff.profiling.tensorboard import with_baseline
from lit_eff.profiling.traffic import KernelTraffic


def main(argv: list[str]) -> int:
    """Train a few steps under torch.profiler, count the kernel, and tell where both are."""
    parser = _parser()
    if "--help" in argv or "-h" in argv:
        parser.print_help()
        return 0
    from lit_eff.cli.compose import compose
    from lit_eff.cli.lightning import lightning_cli, split_arguments, typed_section

    config, overrides, rest = split_arguments(argv)
    options = parser.parse(rest)
    if config is None:
        raise UserError("no recipe: pass --config with a recipe's path or name (see lit-eff recipes)")
    recipe = compose(config, overrides)
    profile: ProfileConfig = typed_section(recipe, "profile")
    steps = profile.warmup_steps + profile.trace_steps + 1
    trainer = {
        **recipe.values.get("trainer", {}),
        "max_steps": steps,
        "limit_val_batches": 0,
        "val_check_interval": None,
        "enable_checkpointing": False,
        "log_every_n_steps": 1,
        "callbacks": [
            {"class_path": "lit_eff.training.callbacks.RunProgress"},
            {"class_path": "lit_eff.training.callbacks.TraceSteps", "init_args": _schedule(profile)},
        ],
    }
    cli = lightning_cli(replace(recipe, values={**recipe.values, "trainer": trainer}), ["fit"])
    folder = Path(cli.trainer.log_dir or ".")
    console = Console(stderr=options.json)
    traffic = profile_attention(profile, cli.model.config, folder, console)
    trace = next(iter(folder.glob("*.pt.trace.json.gz")), None)
    if options.json:
        report = {"tensorboard": str(folder), "trace": trace and str(trace), "traffic": [traffic.to_dict()]}
        print(json.dumps(report, indent=2))
    else:
        console.print(
            f"trace  {trace}\nlook   tensorboard --logdir {folder}", highlight=False, soft_wrap=True
        )
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="lit-eff profile",
        description=__doc__,
        usage="%(prog)s --config RECIPE [--json] [profile.count_length=512 ...]",
        epilog="group=choice and a.b=1 change the recipe.",
    )
    parser.add_argument("--config", metavar="RECIPE", help="a recipe's path or name")
    parser.add_argument("--json", action="store_true", help="print every record, each number with its source")
    return parser


def _schedule(profile: ProfileConfig) -> dict[str, Any]:
    return {"start": profile.warmup_steps, "steps": profile.trace_steps}


def profile_attention(
    profile: ProfileConfig, model: ModelConfig, folder: Path, console: Console
) -> KernelTraffic:
    """Count the Triton attention forward kernel at the model's heads; show it, and write it to TensorBoard.

    The traffic is counted by running the very kernel in Triton's interpreter, and standard attention's three
    beside it; each count stands beside its formula.
    """
    from torch.utils.tensorboard import SummaryWriter

    from lit_eff.profiling.tensorboard import write_traffic

    with console.status("Counting the attention kernel's loads and stores in Triton's interpreter"):
        traffic = count_forward(
            profile.count_batch,
            model.heads,
            model.n_kv_heads,
            profile.count_length,
            model.head_size,
            model.causal,
            window=model.window,
            capability=get_device(profile.device).capability,
        )
    writer = SummaryWriter(str(folder))
    write_traffic(writer, [traffic])
    writer.close()
    show_traffic(traffic, console)
    return traffic


def show_traffic(traffic: KernelTraffic, console: Console) -> None:
    """A table of HBM bytes, counted and modelled: of the kernel, and of standard attention and its parts."""
    shape = ", ".join(f"{name} {value}" for name, value in traffic.shape.items())
    table = Table(
        "kernel", "source", "read, bytes", "written, bytes", title=f"HBM traffic requested: {shape}"
    )
    records = with_baseline(traffic)
    for record in records:
        for source in ("counted", "modelled"):
            read, written = record.get("read_bytes", source), record.get("written_bytes", source)
            if read is not None and written is not None:
                table.add_row(record.kernel, source, f"{read:,}", f"{written:,}")
    same = "equal to the byte" if all(each.counted_equals_modelled for each in records) else "DIFFERENT"
    table.caption = (
        f"counted and modelled are {same}; standard attention asks for {traffic.baseline_ratio:.1f}x"
    )
    console.print(table)
