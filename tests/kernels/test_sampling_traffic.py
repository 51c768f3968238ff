"""How often sampling reads a row, by its I/O model. Counted as modelled: `test_catalogue`."""

from __future__ import annotations

from lit_eff.kernels.sampling.io_model import Row, SamplingModel
from lit_eff.kernels.sampling.plan import Plan

VOCABULARY = 128_256


def test_a_row_is_read_few_times() -> None:
    """Twice without truncation, five times with all of it; the rest is small beside a row."""
    model = SamplingModel(VOCABULARY, Plan(), [Row(False, 0, 0, drawn=(5,))])
    passes = [*model.borders(), model.draw(1)]
    assert len(passes) == model.passes == 2
    assert 2 * model.row_bytes < sum(each.total for each in passes) < 2.1 * model.row_bytes


def test_every_truncation_adds_a_pass() -> None:
    row = Row(False, 0, 0, 9000, count_bin=40, count_fine=7, counted=80, masses=True, massed=90, drawn=(5,))
    model = SamplingModel(VOCABULARY, Plan(), [row], top_k=True, top_p=True)
    passes = [*model.borders(), model.draw(1)]
    assert len(passes) == model.passes == 5
    logits = [each.reads["target"] for each in passes]
    assert logits == [model.row_bytes] * 4 + [model.row_bytes + 4 * Plan().block]
