"""LanguageModelData: what its loaders give, and the unigram baseline on the same targets."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lit_eff.data import LanguageModelData, Splits, TokenizerConfig
from lit_eff.errors import UserError
from lit_eff.files import sha256_bytes
from tests.data.helpers import SPLITS, write_jsonl

KEYS = ["tokens_BT", "targets_BT", "positions_BT", "documents_BT"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("lm") / "a.jsonl", range(300))


def data(source: Path, **changes: Any) -> LanguageModelData:
    values: dict[str, Any] = {"context": 16, "batch_size": 4, "seed": 0, "splits": SPLITS} | changes
    return LanguageModelData(
        str(source), TokenizerConfig(vocab_size=300), cache_dir=str(source.parent / "cache"), **values
    )


def real_rows(loader: Any) -> list[tuple[tuple[int, ...], ...]]:
    return [
        tuple(map(tuple, row))
        for batch in loader
        for row in zip(*(batch[key].tolist() for key in KEYS), strict=True)
    ]


def test_validation_holds_every_validation_token_in_a_fixed_order(source: Path) -> None:
    datamodule = data(source)
    datamodule.prepare_data()
    datamodule.setup("fit")
    batches = list(datamodule.val_dataloader())
    assert len(batches) == len(datamodule.val_dataloader())
    assert all(list(batch) == KEYS for batch in batches)
    tokens = torch.cat([batch["tokens_BT"][batch["documents_BT"] >= 0] for batch in batches]).tolist()
    assert tokens == [token for document in datamodule.documents("validation") for token in document]
    assert real_rows(datamodule.val_dataloader()) == real_rows(data(source, seed=9).val_dataloader())
    test_tokens = sum(int((batch["documents_BT"] >= 0).sum()) for batch in datamodule.test_dataloader())
    assert test_tokens == sum(map(len, datamodule.documents("test")))


def test_a_pass_of_training_holds_every_train_token(source: Path) -> None:
    datamodule = data(source, batch_size=1)
    loader = datamodule.train_dataloader()
    rows = len(loader)
    stream = iter(loader)
    expected = Counter(token for document in datamodule.documents("train") for token in document.tolist())
    layouts = []
    for _ in range(2):
        batches = [next(stream) for _ in range(rows)]
        real = [batch["tokens_BT"][batch["documents_BT"] >= 0] for batch in batches]
        assert Counter(torch.cat(real).tolist()) == expected
        layouts.append({tuple(batch["tokens_BT"][0].tolist()) for batch in batches})
    assert layouts[0] != layouts[1]  # documents are laid out, and cut, anew


def test_a_batch_may_hold_two_passes(source: Path) -> None:
    datamodule = data(source)
    examples = datamodule.examples("train", shuffle=True)
    last = len(examples) - 1
    batch = examples.batch([(0, last), (1, 0), (1, 1)])
    for b, wanted in enumerate([(0, last), (1, 0), (1, 1)]):
        alone = examples.batch([wanted])
        assert all(torch.equal(batch[key][b], alone[key][0]) for key in KEYS)


@pytest.mark.parametrize("limit", [None, 40])
def test_unigram_perplexity_by_hand(source: Path, limit: int | None) -> None:
    datamodule = data(source, validation_tokens=limit)
    end = datamodule.end_of_text

    def successors(documents: Any) -> list[int]:
        return [token for d in documents for token in [*d.tolist()[1:], end]]

    counts = Counter(successors(datamodule.documents("train")))
    total = sum(counts.values()) + datamodule.vocab_size
    targets = [
        target
        for batch in datamodule.val_dataloader()
        for target in batch["targets_BT"].flatten().tolist()
        if target != -100
    ]
    assert targets == successors(datamodule.documents("validation"))[: None if limit is None else 48]
    mean = sum(math.log((counts[target] + 1) / total) for target in targets) / len(targets)
    assert datamodule.unigram_perplexity() == pytest.approx(math.exp(-mean), rel=1e-12)
    assert datamodule.unigram_perplexity("test") != datamodule.unigram_perplexity()


def test_ranks_share_the_rows(source: Path) -> None:
    def on_rank(rank: int, batch_size: int) -> LanguageModelData:
        datamodule = data(source, batch_size=batch_size)
        datamodule.trainer = SimpleNamespace(  # type: ignore[assignment]
            distributed_sampler_kwargs={"rank": rank, "num_replicas": 2},
            max_steps=5,
            overfit_batches=0,
            accumulate_grad_batches=2,
            fit_loop=SimpleNamespace(
                epoch_loop=SimpleNamespace(batch_progress=SimpleNamespace(total=SimpleNamespace(processed=0)))
            ),
        )
        return datamodule

    alone = iter(data(source, batch_size=4).train_dataloader())
    loaders = [on_rank(rank, 2).train_dataloader() for rank in range(2)]
    assert [len(loader) for loader in loaders] == [10, 10]
    for batch, first, second in zip(range(5), *map(iter, loaders), strict=False):
        whole = next(alone)
        assert torch.equal(whole["tokens_BT"], torch.cat([first["tokens_BT"], second["tokens_BT"]])), batch
    evaluated = [real_rows(on_rank(rank, 2).val_dataloader()) for rank in range(2)]
    padding = ((0,) * 16, (-100,) * 16, (0,) * 16, (-1,) * 16)
    read = [row for rank in evaluated for row in rank if row != padding]
    assert sorted(read) == sorted(real_rows(data(source).val_dataloader()))


def test_what_a_checkpoint_needs(source: Path) -> None:
    datamodule = data(source)
    assert datamodule.vocab_size == 300
    assert sorted(datamodule.split_hashes) == ["calibration", "test", "train", "validation"]
    assert len(set(datamodule.split_hashes.values())) == 4
    assert sha256_bytes(datamodule.tokenizer_json.encode()) == sha256_bytes(
        datamodule.tokenizer.to_str().encode()
    )
    assert datamodule.state_dict()["samples"] == 0
    # Fewer words than asked for: the embedding gets what there is.
    tiny = LanguageModelData(
        str(source),
        TokenizerConfig(vocab_size=50_000),
        cache_dir=str(source.parent / "cache"),
        splits=Splits(1, 0, 0, 0),
    )
    assert 257 < tiny.vocab_size == tiny.tokenizer.get_vocab_size() < 50_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 0}, "data.context is 0"),
        ({"batch_size": -1}, "data.batch_size is -1"),
        ({"seed": -1}, "data.seed is -1"),
        ({"validation_tokens": 0}, "data.validation_tokens is 0"),
        ({"max_documents": 0}, "data.max_documents is 0"),
    ],
)
def test_bad_settings(source: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        data(source, **changes)


def test_an_empty_validation_split(source: Path) -> None:
    datamodule = data(source, splits=Splits(1, 0, 0, 0))
    with pytest.raises(UserError, match="the validation split is empty"):
        datamodule.val_dataloader()


def test_settings_from_the_command_line(source: Path) -> None:
    from jsonargparse import ArgumentParser
    from lightning.pytorch import LightningDataModule

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    arguments = [
        "--data=lit_eff.data.LanguageModelData",
        f"--data.source={source}",
        "--data.tokenizer.vocab_size=280",
    ]
    parsed = parser.parse_args([*arguments, "--data.splits.train=0.8", "--data.splits.validation=0.14"])
    datamodule = parser.instantiate(parsed).data
    assert datamodule.config.tokenizer == TokenizerConfig(vocab_size=280)
    assert datamodule.config.splits == Splits(0.8, 0.14, 0.03, 0.03)


def test_the_sample_trains_at_once(tmp_path: Path) -> None:
    datamodule = LanguageModelData(
        "sample:movie-reviews",
        TokenizerConfig(vocab_size=500, training_documents=100),
        context=128,
        cache_dir=str(tmp_path),
        max_documents=400,
    )
    batch = next(iter(datamodule.train_dataloader()))
    assert batch["tokens_BT"].shape == (8, 128)
    assert "97 duplicates dropped" in datamodule.corpus.summary()
    assert 50 < datamodule.unigram_perplexity() < 500
    sources = {len(d) > 60 for d in datamodule.documents("train")[:50]}
    assert sources == {True, False}  # long IMDB and short Rotten Tomatoes reviews, mixed
