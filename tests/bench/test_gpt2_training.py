"""The GPT-2 comparison on a CPU: jobs agree on the loss, a failing job spoils no other, figures follow."""

from __future__ import annotations

import json
import multiprocessing
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_eff.bench import gpt2_training
from lit_eff.bench.gpt2_job import ATTENTION_KERNELS, SIZES, TrainingJob, hugging_face_model, serve
from lit_eff.bench.gpt2_model import TransformerJob, padded_transformer
from lit_eff.bench.gpt2_report import Row, loss_differences, report, verdicts
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
        job = TrainingJob(TINY, attention, False, False, "cpu", seed=0)
        assert job.prepare()["parameters"] == 136_960
        curves[attention] = job.curve(rows_NT)
        assert job.curve(rows_NT) == pytest.approx(curves[attention], abs=1e-6)  # from the same start again
    for attention in ("eager", "sdpa_unmasked", "lit_eff"):
        assert curves[attention] == pytest.approx(curves["sdpa"], abs=2e-3)
    assert np.abs(np.subtract(curves["none"], curves["sdpa"])).max() > 1e-4


@pytest.mark.parametrize("norm_kernels", [False, True])
def test_our_model_starts_and_learns_as_hugging_faces(
    norm_kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The padding takes no part and stays zero; it counts neither as parameters nor as operations."""
    monkeypatch.setattr(TrainingJob, "precision", torch.float16)
    monkeypatch.setattr(TransformerJob, "norm_kernels", norm_kernels)
    vocabulary = 500
    size = replace(TINY, vocabulary=vocabulary)
    rows_NT = np.random.default_rng(0).integers(
        vocabulary, size=(3 * size.batch, size.length), dtype=np.int32
    )
    theirs = TrainingJob(size, "sdpa", False, False, "cpu", seed=0)
    ours = TransformerJob(size, "lit_eff", False, False, "cpu", seed=0)
    facts, same = ours.prepare(), ("parameters", "flops_per_token")
    assert [facts[name] for name in same] == [theirs.prepare()[name] for name in same]
    assert facts["vocabulary_rows"] == 512
    assert "interpreter" in facts["attention_path"]
    curve, expected = ours.curve(rows_NT), theirs.curve(rows_NT)
    assert curve[0] == pytest.approx(expected[0], abs=1e-5)  # the same tokens counted
    assert curve == pytest.approx(expected, abs=1e-3)
    assert ours.curve(rows_NT) == pytest.approx(curve, abs=1e-6)
    weight_VC = ours.model.head_weight(0)
    assert not weight_VC[vocabulary:].any()
    ours.step(ours.noise_BT)
    assert weight_VC.grad is not None
    assert not weight_VC.grad[vocabulary:].any()
    assert weight_VC.grad[:vocabulary].any()


@pytest.mark.gpu
@pytest.mark.parametrize(("norm_kernels", "captured"), [(False, False), (True, False), (False, True)])
def test_our_compiled_model_on_a_gpu(
    norm_kernels: bool, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformerJob, "norm_kernels", norm_kernels)
    size = replace(TINY, width=128, vocabulary=500)
    rows_NT = np.random.default_rng(0).integers(500, size=(6 * size.batch, size.length), dtype=np.int32)
    torch._dynamo.reset()
    theirs = TrainingJob(size, "sdpa", False, False, "cuda", seed=0)
    ours = TransformerJob(size, "lit_eff", True, captured, "cuda", seed=0)
    facts = ours.prepare()
    assert facts["graph_breaks"] == 0
    assert "sdpa" not in facts["attention_path"]
    for _ in range(2):  # from the same start again
        assert ours.curve(rows_NT) == pytest.approx(theirs.curve(rows_NT), abs=5e-3)
    assert ours.time(2)["milliseconds"] > 0


def test_our_model_is_one_graph() -> None:
    torch._dynamo.reset()
    model = padded_transformer(hugging_face_model(TINY, "sdpa", seed=0))
    assert model.attention_backend.name == "triton"

    def hidden(tokens_BT: torch.Tensor) -> torch.Tensor:
        return model.head_norm(model(tokens_BT)[0], 0)

    tokens_BT = torch.randint(TINY.vocabulary, (1, 16))
    with torch.autocast("cpu", torch.float16):
        compiled = torch.compile(hidden, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(tokens_BT), hidden(tokens_BT), rtol=0, atol=1e-2)


def test_turns_are_held_while_a_job_prepares_and_given_back_if_it_fails() -> None:
    class Job:
        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def prepare(self) -> list[bool]:
            if self.fails:
                raise MemoryError("out of memory")
            return [turn.locked() for turn in turns]

    turns = [threading.Lock(), threading.Lock()]
    for fails, expected in ((False, ([True, True], None)), (True, (None, "MemoryError: out of memory"))):
        ours, theirs = multiprocessing.Pipe()
        ours.send(None)
        serve(theirs, turns, (Job, fails))
        assert ours.recv() == expected
        assert not any(turn.locked() for turn in turns)


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
    losses = {
        "eager": [3.0, 2.0],
        "sdpa-compile": [3.0, 2.1],
        "lit_eff-compile": [3.0, 2.2],
        "lit_eff-model": [3.0, 2.4],
    }
    milliseconds = {
        "eager": [35.0, 36.0, 99.0],
        "sdpa-compile": [10.0],
        "lit_eff-compile": [9.0],
        "lit_eff-model": [8.5],
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
    differences = {"eager": 0.05, "lit_eff-compile": 0.05, "lit_eff-model": 0.15}
    assert loss_differences(list(records.values())) == pytest.approx(differences)
    assert "lit_eff-compile" in lines[2]
    assert "within noise" in lines[2]
    assert lines[3] == "small: lit_eff-model 1.18x sdpa-compile (at least 1.2x: FALLS SHORT)"
    assert "BEYOND noise" in lines[5]
    assert records["lit_eff-model"]["attention_share_by_subtraction"] is None
    failed = [{"implementation": "lit_eff-model", "unavailable": "OutOfMemoryError"}]
    assert verdicts("small", failed) == ["small: lit_eff-model did not run, so it is not compared"]


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
        "lit_eff-model",
        "--rounds",
        "2",
        "--steps",
        "1",
    ]
    arguments += ["--curve-steps", "5", "--text", str(text), "--output", str(output)]
    assert gpt2_training.main(arguments) == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [each["implementation"] for each in records] == [
        "eager",
        "sdpa",
        "lit_eff-compile",
        "lit_eff-model",
    ]
    assert [each["graph_breaks"] for each in records] == [None, None, 0, 0]
    assert all(len(each["losses"]) == 5 for each in records)
    for each in records:
        assert each["losses"] == pytest.approx(records[0]["losses"], abs=1e-2)
    assert output.with_suffix(".png").stat().st_size > 10_000
    assert "lit_eff-compile" in capsys.readouterr().out
    assert torch.__version__ == records[0]["torch"]
