"""What libraries print that tells a user of ``lit-eff`` nothing: advertisements, echoes, their own chores.

Each message is named, so that a warning nobody has looked at yet is still shown.
"""

from __future__ import annotations

import logging
import re
import warnings

# Loggers whose own records hold the lines below.
_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
)
_LINES = re.compile(
    r"💡 Tip: "
    r"|(GPU|TPU) available: "  # RunSummary names the device
    r"|`Trainer\.fit` stopped: `max_steps="  # the normal end
    r"|(\[rank: \d+\] )?Seed set to "  # in config.yaml
)
_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning's use of torch
    r".*does not have many workers which may be a bottleneck",  # tokens are memory-mapped: none are needed
    r"The dirpath has changed from ",  # every run has a folder of its own, a resumed one too
)


def _keep(record: logging.LogRecord) -> bool:
    return _LINES.match(record.getMessage()) is None


def quiet() -> None:
    """Hide those lines in this process. May be called again: pytest, for one, resets warning filters."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_keep)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
