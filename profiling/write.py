"""Writes everything of a profile into its run folder, where TensorBoard, Perfetto and a browser find it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from lit_eff.files import atomic_path
from lit_eff.profiling.page import profile_page
from lit_eff.profiling.report import ProfileReport
from lit_eff.profiling.tensorboard import SummaryWriterLike, write_profile
from lit_eff.profiling.timeline import Timeline
from lit_eff.profiling.trace_json import write_classic, write_perfetto
from lit_eff.profiling.xplane import write_xplane

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_report(
    report: ProfileReport,
    timeline: Timeline,
    figures: Mapping[str, Figure],
    folder: Path,
    writer: SummaryWriterLike,
) -> list[Path]:
    """``profile.json``, ``profile.html``, a PNG a figure, traces of the timeline, and TensorBoard's events.

    An empty timeline leaves no trace files. The classic one is written where torch.profiler left none of its
    own. Returns the files written, without TensorBoard's.
    """
    path = folder / "profile.json"
    report.save(path)
    pictures = {name: png(figure) for name, figure in figures.items()}
    files = [_file(picture, folder / "figures" / f"{name}.png") for name, picture in pictures.items()]
    page = folder / "profile.html"
    with atomic_path(page) as temporary:
        temporary.write_text(profile_page(report, timeline, pictures), encoding="utf-8")
    write_profile(writer, report, figures)
    return [path, page, *files, *_traces(timeline, folder)]


def png(figure: Figure) -> bytes:
    """The figure as a picture."""
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _file(content: bytes, path: Path) -> Path:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)
    return path


def _traces(timeline: Timeline, folder: Path) -> list[Path]:
    if not timeline.spans and not timeline.samples:
        return []
    perfetto = folder / "trace.perfetto.json.gz"
    write_perfetto(timeline, perfetto)
    written = [perfetto, write_xplane(timeline, folder, folder.name)[0]]
    if not any(folder.glob("*.pt.trace.json*")):
        written.append(write_classic(timeline, folder, time.time_ns() // 1_000_000)[0])
    return written
