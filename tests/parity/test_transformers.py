"""Logits equal those of Hugging Face's own classes within 1e-4 in float32, on random weights."""

import pytest
import torch

from lit_eff.models.cache import KVCache
from lit_eff.models.config import ExitConfig
from lit_eff.models.huggingface import from_hf, save_hf

transformers = pytest.importorskip("transformers")

LLAMA = {
    "vocab_size": 97,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
}
BERT = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24,
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
SLIDING = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 0}


def build(kind: str, **settings):
    """A Hugging Face model with random weights large enough that an error in any part shows."""
    torch.manual_seed(0)
    family = {"GPT2": "GPT2", "Llam": "Llama", "Mist": "Mistral", "Bert": "Bert"}.get(kind[:4], kind[:5])
    config = getattr(transformers, f"{family}Config")(
        bos_token_id=None, eos_token_id=None, pad_token_id=None, **settings
    )
    config._attn_implementation = "sdpa"
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, where mistakes hide
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


GPT2 = {
    "vocab_size": 97,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.15,
}
CAUSAL = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "gpt2-gelu": ("GPT2LMHeadModel", GPT2 | {"activation_function": "gelu", "n_inner": 72}),
    "llama": ("LlamaForCausalLM", LLAMA),
    "llama-biases": ("LlamaForCausalLM", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("LlamaForCausalLM", LLAMA | {"tie_word_embeddings": True, "head_dim": 20}),
    "llama-3": ("LlamaForCausalLM", LLAMA | {"rope_parameters": LLAMA3}),
    "llama-linear": ("LlamaForCausalLM", LLAMA | {"rope_parameters": LINEAR}),
    "mistral-window": ("MistralForCausalLM", LLAMA | {"sliding_window": 6}),
    "qwen2": ("Qwen2ForCausalLM", LLAMA),
    "qwen2-window": ("Qwen2ForCausalLM", LLAMA | SLIDING),
    "qwen3": ("Qwen3ForCausalLM", LLAMA | {"head_dim": 16, "tie_word_embeddings": True}),
}


def tokens(batch: int = 2, length: int = 40) -> torch.Tensor:
    return torch.randint(0, 97, (batch, length), generator=torch.Generator().manual_seed(2))


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.abs().max() > 0.1  # the comparison means something
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_causal_language_models(tmp_path, name):
    kind, settings = CAUSAL[name]
    theirs = build(kind, **settings)
    tokens_BT = tokens()
    expected = theirs(tokens_BT).logits
    ours = from_hf(theirs)
    close(ours.logits(ours(tokens_BT)[-1], 0), expected)
    assert ours.parameter_count() == theirs.num_parameters()

    save_hf(ours, tmp_path / "hf")
    close(type(theirs).from_pretrained(tmp_path / "hf").eval()(tokens_BT).logits, expected)
    again = from_hf(tmp_path / "hf")
    torch.testing.assert_close(again.state_dict(), ours.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "mistral-window"])
@torch.no_grad()
def test_decoding_with_a_cache(name):
    kind, settings = CAUSAL[name]
    theirs = build(kind, **settings)
    tokens_BT = tokens(length=16)
    expected = theirs(tokens_BT).logits
    ours = from_hf(theirs)
    cache = KVCache(ours.config, 2, 20)
    for start, stop in ((0, 9), (9, 10), (10, 14), (14, 16)):
        hidden = ours(tokens_BT[:, start:stop], cache=cache, starts_B=cache.lengths_B)[-1]
        close(ours.logits(hidden, 0), expected[:, start:stop])
        cache.advance(torch.full((2,), stop - start))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@torch.no_grad()
def test_each_exit_is_their_hidden_state(name):
    kind, settings = CAUSAL[name]
    theirs = build(kind, **settings)
    ours = from_hf(theirs, ExitConfig((1, 2)))
    expected = theirs(tokens(), output_hidden_states=True).hidden_states
    for exit_index, hidden in enumerate(ours(tokens(), exits=[0, 1])):
        close(hidden, expected[exit_index + 1])


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@torch.no_grad()
def test_masked_language_model_with_padding(tmp_path, activation):
    theirs = build("BertForMaskedLM", **BERT, hidden_act=activation)
    tokens_BT, real_BT, types_BT = padded()
    expected = theirs(tokens_BT, attention_mask=real_BT, token_type_ids=types_BT).logits
    ours = from_hf(theirs)
    hidden = ours(tokens_BT, documents_BT=real_BT - 1, token_types_BT=types_BT)[-1]
    close(ours.logits(hidden, 0)[real_BT == 1], expected[real_BT == 1])
    save_hf(ours, tmp_path / "hf")
    back = transformers.BertForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    close(back(tokens_BT, attention_mask=real_BT, token_type_ids=types_BT).logits, expected)


@torch.no_grad()
def test_sequence_classifier_with_padding(tmp_path):
    theirs = build("BertForSequenceClassification", **BERT, num_labels=3)
    tokens_BT, real_BT, types_BT = padded()
    expected = theirs(tokens_BT, attention_mask=real_BT, token_type_ids=types_BT).logits
    ours = from_hf(theirs)
    hidden = ours(tokens_BT, documents_BT=real_BT - 1, token_types_BT=types_BT)[-1]
    close(ours.logits(hidden, 0, documents_BT=real_BT - 1), expected)
    save_hf(ours, tmp_path / "hf")
    back = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    close(back(tokens_BT, attention_mask=real_BT, token_type_ids=types_BT).logits, expected)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("LlamaForSequenceClassification", LLAMA), ("GPT2ForSequenceClassification", GPT2)],
)
@torch.no_grad()
def test_causal_sequence_classifiers_read_the_last_real_token(kind, settings):
    theirs = build(kind, **settings, num_labels=4)
    tokens_BT, real_BT, _ = padded()
    theirs.config.pad_token_id = 96  # how they find the last real token
    tokens_BT = tokens_BT.clamp_max(95).masked_fill(real_BT == 0, 96)
    expected = theirs(tokens_BT, attention_mask=real_BT).logits
    ours = from_hf(theirs)
    hidden = ours(tokens_BT, documents_BT=real_BT - 1)[-1]
    close(ours.logits(hidden, 0, documents_BT=real_BT - 1), expected)


@torch.no_grad()
def test_encoder_without_a_head_takes_a_new_classifier():
    theirs = build("BertModel", **BERT)
    tokens_BT, real_BT, types_BT = padded()
    expected = theirs(tokens_BT, attention_mask=real_BT, token_type_ids=types_BT)
    ours = from_hf(theirs, ExitConfig((1,), "linear"), labels=2)
    hidden = ours(tokens_BT, documents_BT=real_BT - 1, token_types_BT=types_BT)[-1]
    close(hidden[real_BT == 1], expected.last_hidden_state[real_BT == 1])
    close(ours.head_norm(hidden[:, 0], 1), expected.pooler_output)  # the pretrained pooler is kept


def padded() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, 1 where real, and segment types, of three rows with different lengths."""
    lengths = torch.tensor([30, 17, 4])
    real_BT = (torch.arange(30) < lengths[:, None]).long()
    types_BT = (torch.arange(30) >= lengths[:, None] // 2).long()
    return tokens(3, 30), real_BT, types_BT
