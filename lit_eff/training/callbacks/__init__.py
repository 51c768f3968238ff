"""What happens around training steps: reports, averages, profiles, progress, and checkpoints that survive."""

from lit_eff.training.callbacks.artifacts import RunArtifacts, git_commit
from lit_eff.training.callbacks.checkpoint_io import AtomicCheckpointIO
from lit_eff.training.callbacks.depth_plot import DepthQualityPlot
from lit_eff.training.callbacks.ema import EMA
from lit_eff.training.callbacks.interrupt import SaveOnInterrupt, TrainingInterrupted
from lit_eff.training.callbacks.nvtx import NvtxRanges
from lit_eff.training.callbacks.profile import Profile
from lit_eff.training.callbacks.progress import RunProgress
from lit_eff.training.callbacks.samples import SampleGenerations
from lit_eff.training.callbacks.summary import RunSummary
from lit_eff.training.callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "DepthQualityPlot",
    "NvtxRanges",
    "Profile",
    "RunArtifacts",
    "RunProgress",
    "RunSummary",
    "SampleGenerations",
    "SaveOnInterrupt",
    "Throughput",
    "TrainingInterrupted",
    "git_commit",
]
