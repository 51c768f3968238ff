"""The tokenizer: lossless, deterministic, trained on the train split alone, or loaded and checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from lit_eff.data.progress import Stages
from lit_eff.data.tokenizer import (
    TokenizerConfig,
    find_end_of_text,
    load_tokenizer,
    train_tokenizer,
    vocabulary_size,
)
from lit_eff.errors import UserError
from tests.data.helpers import sentence


def trained(config: TokenizerConfig = TokenizerConfig(vocab_size=300)) -> Tokenizer:  # noqa: B008
    with Stages() as progress:
        return train_tokenizer(map(sentence, range(200)), config, total=200, progress=progress)


@pytest.fixture(scope="module")
def tokenizer() -> Iterator[Tokenizer]:
    return trained()


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives(tokenizer: Tokenizer, text: str) -> None:
    encoded = tokenizer.encode(text)
    assert encoded.ids[0] == tokenizer.token_to_id("<|endoftext|>") == 0
    if "<|endoftext|>" not in text:
        assert tokenizer.decode(encoded.ids) == text


def test_vocabulary(tokenizer: Tokenizer) -> None:
    assert vocabulary_size(tokenizer) == 300
    assert len(tokenizer.encode("liked the film").ids) < len("liked the film")
    assert find_end_of_text(tokenizer, TokenizerConfig()) == 0
    named = trained(TokenizerConfig(vocab_size=300, end_of_text="<end>"))
    assert named.encode("a").tokens[0] == "<end>"


def test_training_gives_the_same_bytes_in_another_process(tokenizer: Tokenizer) -> None:
    code = "from tests.data.test_tokenizer import trained; print(trained().to_str())"
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "true", "PYTHONHASHSEED": "7"}
    root = Path(__file__).parents[2]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, check=True
    )
    assert out.stdout.decode().strip() == tokenizer.to_str()


def test_loading(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Tokenizer.from_str(tokenizer.to_str())
    other.enable_truncation(4)
    other.enable_padding()
    other.save(str(tmp_path / "tokenizer.json"))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(str(path)).to_str() == tokenizer.to_str()
    monkeypatch.setattr(
        "tokenizers.Tokenizer.from_pretrained", lambda name: {"org/x": tokenizer}[name], raising=True
    )
    assert load_tokenizer("hf:org/x").to_str() == tokenizer.to_str()


def test_end_of_text_of_a_loaded_tokenizer(tmp_path: Path) -> None:
    vocabulary = {"a": 0, "<s>": 1, "<stop>": 2, "</s>": 3, "b": 9}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<s>", "<stop>", "</s>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert find_end_of_text(tokenizer, TokenizerConfig(path=str(tmp_path))) == 3
    assert vocabulary_size(tokenizer) == 10
    for declared in ("<stop>", {"content": "<stop>", "lstrip": False}):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": declared}))
        assert find_end_of_text(tokenizer, TokenizerConfig(path=str(tmp_path))) == 2
    assert find_end_of_text(tokenizer, TokenizerConfig(path=str(tmp_path), end_of_text="<s>")) == 1
    with pytest.raises(UserError, match=r"no token '<stopp>'; did you mean '<stop>' or '<s>'\?"):
        find_end_of_text(tokenizer, TokenizerConfig(path=str(tmp_path), end_of_text="<stopp>"))
    bare = Tokenizer(models.WordLevel({"a": 0, "[CLS]": 1}, unk_token="a"))
    bare.add_special_tokens(["[CLS]"])
    with pytest.raises(UserError, match=r"which token ends a document\? .*\[CLS\]"):
        find_end_of_text(bare, TokenizerConfig())


def test_bad_settings_and_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="vocab_size is 256; expected at least 257"):
        TokenizerConfig(vocab_size=256)
    with pytest.raises(UserError, match="training_documents is 0"):
        TokenizerConfig(training_documents=0)
    with pytest.raises(UserError, match=r"no file .*tokenizer.json.*expected a tokenizer.json"):
        load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="is not a usable tokenizer"):
        load_tokenizer(str(tmp_path))
