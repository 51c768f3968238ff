import pytest
import torch

from lit_eff.models.heads import pool


def test_pooling_reads_real_tokens_only():
    hidden_BTC = torch.arange(2 * 4 * 3, dtype=torch.float32).view(2, 4, 3)
    documents_BT = torch.tensor([[0, 0, 0, -1], [7, -1, -1, -1]])
    expected = {
        "first": [hidden_BTC[0, 0], hidden_BTC[1, 0]],
        "last": [hidden_BTC[0, 2], hidden_BTC[1, 0]],
        "mean": [hidden_BTC[0, :3].mean(0), hidden_BTC[1, 0]],
    }
    for pooling, rows in expected.items():
        torch.testing.assert_close(pool(hidden_BTC, pooling, documents_BT), torch.stack(rows))
    torch.testing.assert_close(pool(hidden_BTC, "last", None), hidden_BTC[:, 3])
    torch.testing.assert_close(pool(hidden_BTC, "mean", None), hidden_BTC.mean(1))


@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("head", ["shared", "norm", "linear", "mlp"])
def test_padding_changes_no_exit(make_model, tokens_BT, family, pooling, head):
    model = make_model(family, head=head, labels=3, pooling=pooling, pooler=family == "bert").double()
    lengths = (20, 11, 6)
    documents_BT = torch.tensor([[0] * n + [-1] * (20 - n) for n in lengths])
    states = model(tokens_BT, documents_BT=documents_BT)
    for exit_index, hidden in enumerate(states):
        logits = model.logits(hidden, exit_index, documents_BT=documents_BT)
        assert logits.shape == (3, 3)
        for row, length in enumerate(lengths):
            alone = model(tokens_BT[row : row + 1, :length])[exit_index]
            expected = model.logits(alone, exit_index)
            torch.testing.assert_close(logits[row : row + 1], expected, rtol=1e-9, atol=1e-11)
