"""What a benchmark measured, as JSON lines: a header (machine, versions, command, ceilings), then one line a
measurement.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import platform
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lit_eff.bench.measure import Sample
from lit_eff.errors import UserError
from lit_eff.files import atomic_path

FORMAT = 1


@dataclass(frozen=True)
class Measurement:
    """One contender in one cell; ``rate`` and what follows from it is None where it could not run.

    ``noise`` is the relative half-width of the median's 95% interval. ``extra_bytes`` is the peak memory over
    inputs and outputs. ``ratios`` are this rate over each rival's; a peer is a contender that is not ours.
    """

    section: str
    cell: str
    contender: str
    quantity: str
    unit: str
    ours: bool = False
    rate: float | None = None
    milliseconds: float | None = None
    noise: float | None = None
    rounds: int = 0
    extra_bytes: int | None = None
    best_peer: str | None = None
    ratio_to_best_peer: float | None = None
    ratios: dict[str, float] = field(default_factory=dict)
    unavailable: str = ""
    wrong: bool = False  # it ran, and its result was not that of the others
    source: str = "measured"

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.section, self.cell, self.contender, self.quantity

    @property
    def place(self) -> tuple[str, str, str]:
        """What its rivals share with it."""
        return self.section, self.cell, self.quantity


def timed(measurement: Measurement, sample: Sample, work: float, calls: int = 1) -> Measurement:
    """The measurement with its times, of samples of ``calls`` calls, and its rate.

    ``work`` of a call over milliseconds is the rate in its unit: operations / 1e9, bytes / 1e6, tokens * 1e3.
    """
    milliseconds = sample.median / calls
    return replace(
        measurement,
        rate=work / milliseconds,
        milliseconds=milliseconds,
        noise=sample.noise,
        rounds=len(sample.milliseconds),
    )


def with_ratios(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements with their ratios to every rival in the same cell and quantity."""
    result = []
    for each in measurements:
        rivals = {
            other.contender: other
            for other in measurements
            if other.place == each.place and other.contender != each.contender and other.rate
        }
        peers = {name: other.rate or 0.0 for name, other in rivals.items() if not other.ours}
        best = max(peers, key=peers.__getitem__, default=None)
        if each.rate is None:
            result.append(replace(each, best_peer=best))
            continue
        ratios = {name: each.rate / other.rate for name, other in rivals.items() if other.rate}
        result.append(
            replace(
                each,
                best_peer=best,
                ratio_to_best_peer=ratios[best] if best is not None else None,
                ratios=ratios,
            )
        )
    return result


def header(benchmark: str, arguments: Sequence[str], ceilings: dict[str, float]) -> dict[str, Any]:
    """The machine, the versions that matter, the command and the ceilings of this run."""
    import torch

    from lit_eff.profiling.devices import driver_version

    return {
        "kind": "header",
        "format": FORMAT,
        "benchmark": benchmark,
        "command": shlex.join(["lit-eff", "bench", benchmark, *arguments]),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or "cpu",
        "driver": driver_version(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,  # type: ignore[no-untyped-call]
        **{name: installed_version(name) for name in ("lit_eff", "torch", "triton", "flash-attn-4")},
        "python": platform.python_version(),
        "ceilings": ceilings,
    }


def installed_version(package: str) -> str | None:
    """The version of a package that is installed, or None."""
    if package in ("lit_eff", "torch"):  # a local version such as +cu130, and an uninstalled checkout
        return str(importlib.import_module(package).__version__)
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def lines(head: dict[str, Any], measurements: Iterable[Measurement]) -> Iterator[str]:
    yield json.dumps(head)
    for each in measurements:
        yield json.dumps({"kind": "measurement", **asdict(each)})


def write_results(path: Path, head: dict[str, Any], measurements: Iterable[Measurement]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in lines(head, measurements)), encoding="utf-8")


def read_results(path: Path) -> tuple[dict[str, Any], list[Measurement]]:
    """The header and the measurements of a file that `write_results` wrote.

    Raises:
        UserError: there is no such file, or it is not one of these.
    """
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        head, *rest = records
        if head["kind"] != "header" or head["format"] != FORMAT:
            raise ValueError("no header of this format")
        known = {each.name for each in fields(Measurement)}
        found = [
            Measurement(**{name: value for name, value in record.items() if name in known}) for record in rest
        ]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a result file of `lit-eff bench` ({error})") from None
    return head, found
