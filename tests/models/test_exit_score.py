"""The exit classifier's score: its formula, and a model without one stays what it was."""

import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.models.checkpoint import weights_sha256

DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-5}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_score_is_a_line_over_the_normalised_state(make_model, tokens_BT, dtype):
    """w . h / sqrt(mean(h^2) + 1e-6) + b in float64; the score is at least float32 whatever the dtype."""
    model = make_model(classifier=True).to(dtype)
    for hidden_BTC in model(tokens_BT):
        found_BT = model.exit_score(hidden_BTC)
        h = hidden_BTC.detach().double()
        w, b = model.exit_classifier.weight[0].double(), model.exit_classifier.bias.double()
        expected_BT = (w * h).sum(-1) / (h.square().mean(-1) + 1e-6).sqrt() + b
        assert found_BT.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found_BT.double(), expected_BT, rtol=0, atol=DTYPES[dtype])


def test_scale_does_not_matter_and_direction_does(make_model, tokens_BT):
    model = make_model(classifier=True).double()
    hidden_BTC = model(tokens_BT)[0]
    score_BT = model.exit_score(hidden_BTC)
    torch.testing.assert_close(model.exit_score(100 * hidden_BTC), score_BT, rtol=0, atol=1e-4)
    bias = model.exit_classifier.bias
    torch.testing.assert_close(model.exit_score(-hidden_BTC) - bias, bias - score_BT)
    assert model.exit_score(torch.zeros(2, 32)).tolist() == [bias.item()] * 2


def test_autocast_leaves_the_score_in_float32(make_model, tokens_BT):
    model = make_model(classifier=True)
    hidden_BTC = model(tokens_BT)[0]
    with torch.autocast("cpu", torch.bfloat16):
        score_BT = model.exit_score(hidden_BTC)
    assert torch.equal(score_BT, model.exit_score(hidden_BTC))


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_a_sequence_classifier_reads_the_pooled_state(make_model, tokens_BT, pooling):
    model = make_model(classifier=True, labels=3, pooling=pooling).double()
    lengths = (20, 11, 6)
    documents_BT = torch.tensor([[0] * n + [-1] * (20 - n) for n in lengths])
    for exit_index, hidden_BTC in enumerate(model(tokens_BT, documents_BT=documents_BT)):
        score_B = model.exit_score(hidden_BTC, documents_BT=documents_BT)
        assert score_B.shape == (3,)
        for row, length in enumerate(lengths):
            alone = model(tokens_BT[row : row + 1, :length])[exit_index]
            torch.testing.assert_close(score_B[row : row + 1], model.exit_score(alone))


def test_a_model_without_one_is_what_it_was_and_says_so(make_model):
    plain, classified = make_model(), make_model(classifier=True)
    added = classified.state_dict().keys() - plain.state_dict().keys()
    assert added == {"exit_classifier.weight", "exit_classifier.bias"}
    with pytest.raises(UserError, match="no exit classifier; train one with recipes/exit_classifier"):
        plain.exit_score(torch.zeros(1, 32))
    before = weights_sha256(classified)
    classified.exit_classifier.bias.data += 1.0
    assert weights_sha256(classified) != before  # a certificate holds for one classifier
