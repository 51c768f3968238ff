"""The token cache: right content, reused, never stale, whole or absent, safe for two processes at once."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lit_eff.data.corpus as corpus_module
from lit_eff.data.corpus import default_cache_dir, open_corpus
from lit_eff.data.readers import TextFormat
from lit_eff.data.splits import SPLITS, Splits
from lit_eff.data.tokenizer import TokenizerConfig
from lit_eff.errors import UserError
from tests.data.helpers import TOKENIZER, config, sentence, write_jsonl

ROOT = Path(__file__).parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "a.jsonl", range(200))


def entries(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_every_document_is_there_once_in_its_split(tmp_path: Path, source: Path) -> None:
    corpus = open_corpus(config(source), tmp_path / "cache")
    decoded = {
        name: [corpus.tokenizer.decode(tokens) for tokens in corpus.documents(name)] for name in SPLITS
    }
    assert sorted(text for texts in decoded.values() for text in texts) == sorted(map(sentence, range(200)))
    assert {name: len(texts) for name, texts in decoded.items()} == corpus.manifest["documents"]
    assert all(tokens.dtype == np.int32 and tokens[0] == 0 for tokens in corpus.documents("train"))
    assert corpus.tokenizer.to_str() == corpus.tokenizer_json
    assert "200 documents: train" in corpus.summary()


def test_duplicates_are_dropped_and_said(tmp_path: Path) -> None:
    rows = [{"text": text} for text in [*map(sentence, range(50)), sentence(3), f" {sentence(4)}\n", " "]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = open_corpus(config(tmp_path / "a.jsonl"), tmp_path / "cache")
    assert "50 documents (2 duplicates dropped, 1 blank ones dropped): train" in corpus.summary()


def test_the_tokenizer_sees_the_train_split_alone(tmp_path: Path, source: Path) -> None:
    corpus = open_corpus(config(source), tmp_path / "cache")
    held_out = [corpus.tokenizer.decode(t) for name in SPLITS[1:] for t in corpus.documents(name)]
    changed = tmp_path / "b.jsonl"
    # Other held-out documents, with words of their own; the train split stays as it was.
    kept = [sentence(n) for n in range(200) if sentence(n) not in held_out]
    new = [text for n in range(300) if (text := f"zyzzyva {n} zyzzyva") and _split(text) != "train"]
    changed.write_text("".join(json.dumps({"text": text}) + "\n" for text in kept + new))
    assert open_corpus(config(changed), tmp_path / "cache").tokenizer_json == corpus.tokenizer_json


def _split(text: str) -> str:
    from lit_eff.data.splits import content_digest
    from tests.data.helpers import SPLITS as fractions  # noqa: N811

    return SPLITS[fractions.assign(content_digest(text))]


def test_text_that_spells_the_special_token_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one <|endoftext|> two"}\n')
    corpus = open_corpus(config(tmp_path / "a.jsonl", splits=Splits(1, 0, 0, 0)), tmp_path / "cache")
    tokens = corpus.documents("train")[0].tolist()
    assert tokens.count(0) == 1
    assert corpus.tokenizer.decode(tokens) == "one <|endoftext|> two"


def test_the_second_run_reads_nothing_again(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_corpus(config(source), tmp_path / "cache")

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(corpus_module, "plan_corpus", fail)
    second = open_corpus(config(source), tmp_path / "cache")
    assert second.folder == first.folder
    assert [t.tolist() for t in second.documents("train")] == [t.tolist() for t in first.documents("train")]
    mapped = second.documents("train").tokens
    assert isinstance(mapped.base, np.memmap)
    # The same bytes under another name are the same corpus.
    copy = source.with_name("copy.jsonl")
    copy.write_bytes(source.read_bytes())
    assert open_corpus(config(copy), tmp_path / "cache").folder == first.folder


def test_whatever_changes_the_content_changes_the_key(tmp_path: Path, source: Path) -> None:
    cache = tmp_path / "cache"
    base = config(source)
    saved = open_corpus(base, cache)
    saved.tokenizer.save(str(tmp_path / "tokenizer.json"))
    variants = [
        replace(base, splits=Splits(0.5, 0.3, 0.1, 0.1)),
        replace(base, tokenizer=TokenizerConfig(vocab_size=290)),
        replace(base, tokenizer=TokenizerConfig(vocab_size=300, training_documents=20)),
        replace(base, tokenizer=TokenizerConfig(path=str(tmp_path / "tokenizer.json"))),
        replace(base, max_documents=150),
        replace(base, max_tokens=5),
        replace(base, form=TextFormat(encoding="latin-1")),
    ]
    keys = {saved.folder.name} | {open_corpus(variant, cache).folder.name for variant in variants}
    with source.open("a") as file:
        file.write('{"text": "one more"}\n')
    keys.add(open_corpus(base, cache).folder.name)
    assert len(keys) == len(variants) + 2
    assert entries(cache) == sorted(keys)


def test_training_documents_bound_the_tokenizer_only(tmp_path: Path, source: Path) -> None:
    few = open_corpus(config(source, tokenizer=replace(TOKENIZER, training_documents=3)), tmp_path / "cache")
    assert sum(few.manifest["documents"].values()) == 200
    assert few.tokenizer_json != open_corpus(config(source), tmp_path / "cache").tokenizer_json


def test_documents_are_cut_to_max_tokens(tmp_path: Path, source: Path) -> None:
    whole = open_corpus(config(source), tmp_path / "cache").documents("train")
    cut = open_corpus(config(source, max_tokens=6), tmp_path / "cache").documents("train")
    assert max(cut.lengths) == 6 < max(whole.lengths)
    # Another setting, so another tokenizer file, but the same training: the tokens before the cut agree.
    assert all(c.tolist() == w[:6].tolist() for c, w in zip(cut, whole, strict=True))


def test_a_failed_build_leaves_nothing(tmp_path: Path, source: Path) -> None:
    with source.open("a") as file:
        file.write("{broken\n")
    with pytest.raises(UserError, match=r"a.jsonl:201: not valid JSON"):
        open_corpus(config(source), tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_a_full_disk_is_said_and_leaves_nothing(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path, *args: object) -> None:
        folder.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(corpus_module, "write_corpus", full)
    with pytest.raises(UserError, match=r"cannot write the token cache .*No space left.*set data.cache_dir"):
        open_corpus(config(source), tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


@pytest.mark.parametrize("damage", ["cut", "missing", "garbage"])
def test_a_damaged_entry_is_built_again(
    tmp_path: Path, source: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = open_corpus(config(source), tmp_path / "cache")
    before = corpus.documents("train").tokens.tolist()
    if damage == "cut":
        path = corpus.folder / "train.tokens.bin"
        path.write_bytes(path.read_bytes()[:-4])
    elif damage == "missing":
        (corpus.folder / "test.spans.npy").unlink()
    else:
        (corpus.folder / "tokenizer.json").write_text("{")
    assert open_corpus(config(source), tmp_path / "cache").documents("train").tokens.tolist() == before
    assert "is damaged" in capsys.readouterr().err


def test_what_a_killed_build_left_is_swept(tmp_path: Path, source: Path) -> None:
    key = open_corpus(config(source), tmp_path / "cache").folder.name
    (tmp_path / "cache" / key).rename(tmp_path / "cache" / f".{key}.killed")
    open_corpus(config(source), tmp_path / "cache")
    assert entries(tmp_path / "cache") == [key]


def test_two_processes_at_once(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", range(4000))
    code = (
        "import sys; from pathlib import Path; from lit_eff.data.corpus import open_corpus;"
        "from tests.data.helpers import config; print('ready', flush=True); sys.stdin.readline();"
        "c = open_corpus(config(sys.argv[1]), Path(sys.argv[2]));"
        "print(c.folder, sum(map(len, c.documents('train'))))"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "cache")]
    pipe = subprocess.PIPE
    runs = [
        subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    results = [run.communicate(timeout=60) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], results
    assert results[0][0] == results[1][0]
    assert sorted("Encoding documents" in err for _, err in results) == [False, True]  # one of them built
    assert sum("waiting for it" in err for _, err in results) == 1
    assert len(entries(tmp_path / "cache")) == 1


def test_an_empty_split_is_said_when_it_is_used(tmp_path: Path, source: Path) -> None:
    corpus = open_corpus(config(source, splits=Splits(0.9, 0.1, 0, 0)), tmp_path / "cache")
    assert len(corpus.documents("validation"))
    with pytest.raises(
        UserError, match=r"calibration split is empty \(200 documents in all\); raise data.splits"
    ):
        corpus.documents("calibration")
    with pytest.raises(UserError, match=r"no split named 'valid'; did you mean 'validation'\?"):
        corpus.documents("valid")


def test_documents_are_a_sequence(tmp_path: Path, source: Path) -> None:
    documents = open_corpus(config(source), tmp_path / "cache").documents("train")
    assert [t.tolist() for t in documents[1:4]] == [documents[i].tolist() for i in (1, 2, 3)]
    assert documents[-1].tolist() == list(documents)[-1].tolist()
    with pytest.raises(IndexError):
        documents[len(documents)]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "lit_eff"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "lit_eff"
    with pytest.raises(UserError, match="max_documents is 0"):
        config("x", max_documents=0)


def test_corpus_needs_no_torch() -> None:
    code = "import sys, lit_eff.data.corpus; print('torch' in sys.modules, 'lightning' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False False"
