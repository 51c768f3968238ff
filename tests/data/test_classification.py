"""ClassificationData: labels stay with their texts, batches are padded to their longest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from lit_eff.data import ClassificationData, Splits, TokenizerConfig
from lit_eff.errors import UserError
from tests.data.helpers import SPLITS, sentence, write_jsonl


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("classes") / "a.jsonl", range(200), labels=True)


def data(source: Path, **changes: Any) -> ClassificationData:
    values: dict[str, Any] = {"context": 64, "batch_size": 6, "splits": SPLITS} | changes
    values.setdefault("tokenizer", TokenizerConfig(vocab_size=300))
    return ClassificationData(str(source), cache_dir=str(source.parent / "cache"), **values)


def read(datamodule: ClassificationData, loader: Any, batches: int) -> dict[str, int]:
    found = {}
    for _, batch in zip(range(batches), loader, strict=False):
        assert all(value.dtype == torch.int64 for value in batch.values())
        lengths = (batch["documents_BT"] == 0).sum(1)
        assert lengths.max() == batch["tokens_BT"].shape[1]
        for tokens_T, documents_T, length, label in zip(
            batch["tokens_BT"], batch["documents_BT"], lengths, batch["labels_B"], strict=True
        ):
            assert documents_T.tolist() == [0] * int(length) + [-1] * (len(documents_T) - int(length))
            found[datamodule.tokenizer.decode(tokens_T[:length].tolist())] = int(label)
    return found


def test_labels_stay_with_their_texts(source: Path) -> None:
    datamodule = data(source, context=200)
    assert datamodule.class_names == ("bad", "good")
    # helpers.write_jsonl: even numbers are good.
    truth = {sentence(n): ["good", "bad"][n % 2] for n in range(200)}
    found: dict[str, int] = {}
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader(), datamodule.test_dataloader()):
        found |= read(datamodule, loader, len(loader))
    calibration = zip(datamodule.documents("calibration"), datamodule.labels("calibration"), strict=True)
    found |= {datamodule.tokenizer.decode(tokens): int(label) for tokens, label in calibration}
    assert {text: datamodule.class_names[label] for text, label in found.items()} == truth


def test_wordpiece_is_cut_inside_its_special_tokens(tmp_path: Path, source: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz0123456789."
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    datamodule = data(source, tokenizer=TokenizerConfig(path=str(tmp_path)), context=12)
    documents = datamodule.documents("train")
    assert max(documents.lengths) == 12
    assert all(tokens[0] == 2 and tokens[-1] == 3 for tokens in documents)
    assert datamodule.vocab_size == len(pieces)
    batch = next(iter(datamodule.train_dataloader()))
    assert batch["tokens_BT"].shape[1] <= 12


def test_ranks_are_evened_out_by_an_ignored_example(source: Path) -> None:
    datamodule = data(source)
    batch = datamodule.examples("test", shuffle=False).batch([(0, 10_000)])
    assert {key: value.tolist() for key, value in batch.items()} == {
        "tokens_BT": [[0]],
        "documents_BT": [[-1]],
        "labels_B": [-100],
    }


def test_training_passes_are_shuffled(source: Path) -> None:
    datamodule = data(source, batch_size=1)
    loader = datamodule.train_dataloader()
    stream = iter(loader)
    count = len(datamodule.documents("train"))
    passes = [[tuple(next(stream)["tokens_BT"][0].tolist()) for _ in range(count)] for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]


def test_splits_are_those_of_the_language_model(source: Path) -> None:
    from lit_eff.data import LanguageModelData

    language = LanguageModelData(
        str(source), TokenizerConfig(vocab_size=300), splits=SPLITS, cache_dir=str(source.parent / "cache")
    )
    assert language.split_hashes == data(source).split_hashes


def test_a_missing_label_column(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "sentiment": 1}) + "\n")
    with pytest.raises(UserError, match=r"a.jsonl:1 has no column 'label'.*; set data.label_column"):
        data(tmp_path / "a.jsonl").prepare_data()
    named = data(tmp_path / "a.jsonl", label_column="sentiment", splits=Splits(1, 0, 0, 0))
    assert named.class_names == ("1",)
