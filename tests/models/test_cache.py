import pytest
import torch

from lit_eff.errors import UserError
from lit_eff.models.cache import KVCache
from lit_eff.models.transformer import LayerContext

CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def cache_for(model, batch, capacity=24):
    return KVCache(model.config, batch, capacity, dtype=torch.float64)


@pytest.mark.parametrize(
    "settings", [{}, {"window": 4}, {"attention_softcap": 2.0}], ids=["full", "window", "cap"]
)
@pytest.mark.parametrize("family", ["llama", "qwen", "gpt2"])
def test_decoding_equals_the_full_forward(make_model, tokens_BT, family, settings):
    """A prefill of ragged prompts, then one token at a time: each row as if it were alone."""
    model = make_model(family, **settings).double()
    expected = model(tokens_BT)[-1]
    cache = cache_for(model, 3)
    lengths_B = torch.tensor([3, 9, 5])
    model(tokens_BT[:, :9], cache=cache, starts_B=cache.lengths_B)  # writes beyond short prompts are harmless
    cache.advance(lengths_B)
    rows = torch.arange(3)
    for _ in range(8):
        starts_B = cache.lengths_B.clone()
        hidden = model(tokens_BT[rows, starts_B][:, None], cache=cache, starts_B=starts_B)[-1]
        torch.testing.assert_close(hidden[:, 0], expected[rows, starts_B], **CLOSE)
        cache.advance(torch.ones(3, dtype=torch.int64))
    assert cache.lengths_B.tolist() == [11, 17, 13]


def test_rollback_forgets_what_was_drafted(make_model, tokens_BT):
    model = make_model().double()
    expected = model(tokens_BT)[-1]
    cache = cache_for(model, 3)
    model(tokens_BT[:, :6], cache=cache, starts_B=cache.lengths_B)
    cache.advance(torch.full((3,), 6))
    wrong = (tokens_BT[:, 6:10] + 1) % 61
    model(wrong, cache=cache, starts_B=cache.lengths_B)
    cache.advance(torch.full((3,), 4))
    cache.rollback(torch.tensor([6, 6, 6]))
    hidden = model(tokens_BT[:, 6:8], cache=cache, starts_B=cache.lengths_B)[-1]
    torch.testing.assert_close(hidden, expected[:, 6:8], **CLOSE)
    with pytest.raises(UserError, match="cannot roll back"):
        cache.rollback(torch.tensor([6, 7, 6]))
    with pytest.raises(UserError, match="cannot roll back"):
        cache.rollback(torch.tensor([-1, 0, 0]))
    assert cache.lengths_B.tolist() == [6, 6, 6]


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_selected_rows_go_on_alone(make_model, tokens_BT, rows):
    model = make_model().double()
    expected = model(tokens_BT)[-1][rows]
    cache = cache_for(model, 3)
    model(tokens_BT[:, :6], cache=cache, starts_B=cache.lengths_B)
    cache.advance(torch.full((3,), 6))
    cache.select(rows)
    assert (cache.batch, cache.capacity) == (2, 24)
    hidden = model(tokens_BT[rows, 6:7], cache=cache, starts_B=cache.lengths_B)[-1]
    torch.testing.assert_close(hidden[:, 0], expected[:, 6], **CLOSE)


def test_a_row_is_a_view(make_model, tokens_BT):
    """A sequence run alone through its row of a cache stands in the whole cache, and nothing else does."""
    model = make_model("llama")
    cache = cache_for(model, 3)
    starts_1 = torch.zeros(1, dtype=torch.int64)
    row = cache.row(1)
    with torch.no_grad():
        model(tokens_BT[:1, :5], cache=row, starts_B=starts_1)
    row.advance(torch.tensor([5]))
    assert cache.lengths_B.tolist() == [0, 5, 0]
    assert cache.k[:, 1, :5].abs().amax(dim=(2, 3)).min() > 0
    assert not cache.k[:, [0, 2]].any()
    assert not cache.v[:, [0, 2]].any()


def test_layers_may_stand_at_different_depths(make_model, tokens_BT):
    """Shallow layers run ahead token by token; the deep ones follow over the queue in one call."""
    model = make_model().double()
    expected = model(tokens_BT)[-1]
    cache = cache_for(model, 3)
    shallow = []
    for t in range(8):
        starts_B = torch.full((3,), t)
        context = LayerContext(starts_B[:, None], cache=cache, starts_B=starts_B)
        embedded = model.embed(tokens_BT[:, t : t + 1], context.positions_BT)
        shallow.append(model.run_layers(embedded, 0, 1, context))
    starts_B = torch.zeros(3, dtype=torch.int64)
    context = LayerContext(torch.arange(8)[None], cache=cache, starts_B=starts_B)
    deep = model.run_layers(torch.cat(shallow, dim=1), 1, 3, context)
    torch.testing.assert_close(deep, expected[:, :8], **CLOSE)


def test_reading_fewer_slots_changes_nothing(make_model, tokens_BT):
    model = make_model().double()
    starts_B = torch.zeros(3, dtype=torch.int64)
    outputs = []
    for key_slots in (None, 8):
        context = LayerContext(
            torch.arange(8)[None], cache=cache_for(model, 3), starts_B=starts_B, key_slots=key_slots
        )
        embedded = model.embed(tokens_BT[:, :8], context.positions_BT)
        outputs.append(model.run_layers(embedded, 0, 3, context))
    torch.testing.assert_close(outputs[0], outputs[1], **CLOSE)


def test_misuse_is_named(make_model, tokens_BT):
    model = make_model()
    cache = KVCache(model.config, 3, 8)
    with pytest.raises(UserError, match="needs starts_B"):
        model(tokens_BT, cache=cache)
    with pytest.raises(IndexError):
        model(tokens_BT, cache=cache, starts_B=cache.lengths_B)
    with pytest.raises(UserError, match="expected positive"):
        KVCache(model.config, 0, 8)
