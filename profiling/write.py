"""Writes everything of a profile into its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eff.files import atomic_path
from lit_eff.profiling.report import ProfileReport
from lit_eff.profiling.tensorboard import SummaryWriterLike, write_traffic
from lit_eff.profiling.timeline import Timeline

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    report: ProfileReport,
    timeline: Timeline,
    figures: Mapping[str, Figure],
    folder: Path,
    writer: SummaryWriterLike,
) -> list[Path]:
    """``profile.json``, each figure as a PNG, and TensorBoard's events; returns the files written."""
    written = [folder / "profile.json"]
    report.save(written[0])
    for name, figure in figures.items():
        path = folder / "figures" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110)
        writer.add_figure(name, figure)
        written.append(path)
    write_traffic(writer, report.records)
    return written
