"""The GPT-2 comparison on a CPU: jobs agree on the loss, a failing job spoils no other, figures follow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_eff.bench import gpt2_training
from lit_eff.bench.gpt2_job import ATTENTION_KERNELS, SIZES, TrainingJob
from lit_eff.bench.gpt2_training import Row, loss_differences, report, verdicts
from lit_eff.errors import UserError

pytest.importorskip("transformers")
TINY = SIZES["tiny"]


def test_only_the_attention_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingJob, "precision", torch.float16)  # the interpreter's bfloat16 is wrong
    rows_NT = np.random.default_rng(0).integers(
        TINY.vocabulary, size=(4 * TINY.batch, TINY.length), dtype=np.int32
    )
    curves = {}
    for attention in ("eager", "sdpa", "sdpa_unmasked", "lit_eff", "none"):
        job = TrainingJob(TINY, attention, False, "cpu", seed=0)
        assert job.prepare()["parameters"] == 136_960
        curves[attention] = job.curve(rows_NT)
        assert job.curve(rows_NT) == pytest.approx(curves[attention], abs=1e-6)  # from the same start again
    for attention in ("eager", "sdpa_unmasked", "lit_eff"):
        assert curves[attention] == pytest.approx(curves["sdpa"], abs=2e-3)
    assert np.abs(np.subtract(curves["none"], curves["sdpa"])).max() > 1e-4


def test_operations_a_token() -> None:
    """As in the measured anchor: 397,100 tokens/s of GPT-2 small are 34.5% of 989 TFLOP/s."""
    assert SIZES["small"].flops_per_token(124_439_808) * 397_100 / 989e12 == pytest.approx(0.345, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "is_attention"),
    [
        ("attention_forward_kernel", True),
        ("attention_key_gradient_kernel", True),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<pytorch_flash::Flash_bwd>", True),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x64", True),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention::AttentionKernel)", True),
        ("triton_poi_fused__scaled_dot_product_flash_attention_view_3", False),
        ("nvjet_tst_192x192_64x4_2x1_v_bz_coopA_NTT", False),
    ],
)
def test_attention_is_known_by_its_kernels(name: str, is_attention: bool) -> None:
    assert bool(ATTENTION_KERNELS.search(name)) == is_attention


def rows() -> list[Row]:
    facts = {"graph_breaks": 0, "parameters": 10, "flops_per_token": 60.0}
    losses = {"eager": [3.0, 2.0], "sdpa-compile": [3.0, 2.1], "lit_eff-compile": [3.0, 2.2]}
    milliseconds = {
        "eager": [35.0, 36.0, 99.0],
        "sdpa-compile": [10.0],
        "lit_eff-compile": [9.0],
        "none-compile": [8.0],
    }
    made = [Row(name, facts, times, losses=losses.get(name)) for name, times in milliseconds.items()]
    return [*made, Row("sdpa", fault="OutOfMemoryError: ...")]


def test_report_and_verdicts() -> None:
    records = {each["implementation"]: each for each in report("small", SIZES["small"], rows())}
    ours = records["lit_eff-compile"]
    assert ours["tokens_per_second"] == pytest.approx(16 * 1024 / 9e-3)
    assert ours["ratios"]["eager"] == pytest.approx(36 / 9)
    assert ours["attention_share_by_subtraction"] == pytest.approx(1 / 9)
    assert records["sdpa"]["unavailable"] == "OutOfMemoryError: ..."
    lines = verdicts("small", list(records.values()))
    assert lines[0] == "small: lit_eff-compile 1.11x sdpa-compile (at least 1x: holds)"
    assert lines[1] == "small: lit_eff-compile 4.00x eager (at least 3.5x: holds)"
    assert loss_differences(list(records.values())) == pytest.approx({"eager": 0.05, "lit_eff-compile": 0.05})
    assert "within noise" in lines[2]


def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="'lit_eff-compile'"):
        gpt2_training.main(["--jobs", "lit_eff_compile"])
    with pytest.raises(UserError, match="--rounds is 0"):
        gpt2_training.main(["--rounds", "0"])

    def missing(module: str, extra: str) -> None:
        raise UserError(f"{module} is not installed; run: pip install 'lit_eff[{extra}]'")

    monkeypatch.setattr(gpt2_training, "require", missing)
    with pytest.raises(UserError, match=r"lit_eff\[hf\]"):
        gpt2_training.main([])


@pytest.mark.slow
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes, turns, curves, JSON lines and plot."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # of the jobs' processes
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"the story of number {number} and its film" for number in range(2000)))
    output = tmp_path / "gpt2.jsonl"
    arguments = [
        "--sizes",
        "tiny",
        "--jobs",
        "eager",
        "sdpa",
        "lit_eff-compile",
        "--rounds",
        "2",
        "--steps",
        "1",
    ]
    arguments += ["--curve-steps", "5", "--text", str(text), "--output", str(output)]
    assert gpt2_training.main(arguments) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [each["implementation"] for each in records] == ["eager", "sdpa", "lit_eff-compile"]
    assert records[-1]["graph_breaks"] == 0
    assert all(len(each["losses"]) == 5 for each in records)
    assert records[-1]["losses"] == pytest.approx(records[0]["losses"], abs=1e-2)
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "lit_eff-compile" in capsys.readouterr().out
    assert torch.__version__ == records[0]["torch"]
