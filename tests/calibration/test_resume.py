"""An interrupted calibration goes on: same certificate, nothing generated twice, nothing stale used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lit_eff.calibration.config import CalibrationConfig
from lit_eff.calibration.job import calibrate
from lit_eff.calibration.resume import Parts, WorkFolder
from lit_eff.decoding import batched
from lit_eff.models.checkpoint import LoadedCheckpoint, weights_sha256
from lit_eff.runtime.certificate import Certificate
from tests.calibration.test_job import CONFIG, HASHES, load, prompts

BATCHES = 3  # of 30 calibration sequences 16 and 14, and the test's 10


def run(
    work: WorkFolder | None,
    *,
    loaded: LoadedCheckpoint | None = None,
    config: CalibrationConfig = CONFIG,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Certificate:
    batches = prompts(30, seed), prompts(10, 1)
    settings = {"split_hashes": HASHES, "progress": progress, "work": work}
    return calibrate(loaded or load(), *batches, config, **settings)


@pytest.mark.parametrize("done", range(1, BATCHES + 1))
def test_it_goes_on_where_it_was(tmp_path: Path, generated: list[int], done: int) -> None:
    def interrupt(stage: str, *_: int) -> None:
        if len(generated) == done:
            raise KeyboardInterrupt

    found: list[tuple[str, int, int]] = []
    work = WorkFolder(tmp_path / "work", lambda *event: found.append(event))
    with pytest.raises(KeyboardInterrupt):
        run(work, progress=interrupt)
    assert found == []
    before, seen = list(generated), []
    generated.clear()
    resumed = run(work, progress=lambda *event: seen.append(event))
    assert found == [("calibration", min(30, 16 * done), 30), ("test", 10, 10)][: max(1, done - 1)]
    assert before + generated == [16, 14, 10]
    assert seen == [("calibration", 16, 30), ("calibration", 30, 30), ("test", 10, 10)]
    assert resumed == run(None)
    work.remove()
    assert not list(tmp_path.iterdir())


def other_weights() -> LoadedCheckpoint:
    loaded = load()
    with torch.no_grad():
        loaded.model.blocks[0].mlp.down.weight[0, 0] += 1e-3
    return replace(loaded, weights_sha256=weights_sha256(loaded.model))


@pytest.mark.parametrize(
    "change",
    [
        {"config": replace(CONFIG, thresholds=(0.9, 0.5, 0.3, 0.1))},
        {"config": replace(CONFIG, measure="max_probability")},
        {"config": replace(CONFIG, decay=4.0)},
        {"config": replace(CONFIG, batch_size=8)},
        {"config": replace(CONFIG, continuation_length=5)},
        {"seed": 7},
        {"loaded": other_weights()},
    ],
)
def test_what_differs_in_anything_is_generated_anew(
    tmp_path: Path, generated: list[int], change: dict
) -> None:
    """The test's prompts may be kept, where the same rule is selected by another grid or other prompts."""
    found: list[str] = []
    work = WorkFolder(tmp_path / "work", lambda stage, *_: found.append(stage))
    run(work)
    generated.clear()
    changed = run(work, **change)
    assert sum(generated) >= 30
    assert "calibration" not in found
    assert changed == run(None, **change)


def test_other_levels_of_the_guarantee_use_what_was_generated(tmp_path: Path, generated: list[int]) -> None:
    work = WorkFolder(tmp_path / "work")
    run(work)
    generated.clear()
    config = replace(CONFIG, delta=0.6, epsilon=0.2, p_value="wsr")
    assert run(work, config=config) == run(None, config=config)
    assert generated[:-3] in ([], [10]), "all but the test's rule, where another threshold is selected"


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", None])
def test_a_damaged_part_is_generated_again(
    tmp_path: Path, generated: list[int], damage: bytes | None
) -> None:
    work = WorkFolder(tmp_path / "work")
    expected = run(work)
    first = min(tmp_path.glob("work/calibration-*/0000000+16.npz"))
    content = first.read_bytes()
    middle = len(content) // 3
    flipped = content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]
    first.write_bytes(flipped if damage is None else damage)
    generated.clear()
    assert run(work) == expected
    assert generated == [16]
    assert first.read_bytes() == content


def test_a_part_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(tmp_path / "parts")

    def interrupted(file, **arrays: np.ndarray) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    tokens = np.zeros((2, 5, 3), np.int64)
    part = batched.Continuations(tokens, tokens, 7)
    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            parts.save(0, part)
    assert not list(parts.folder.iterdir())
    assert parts.load(0, 5) is None
    parts.save(0, part)
    loaded = parts.load(0, 5)
    assert loaded is not None
    assert loaded.rows_run == 7
    assert parts.load(0, 4) is None
    assert parts.sequences() == 5
