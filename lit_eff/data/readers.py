"""Local files to records, one reader a format. Whatever is wrong is named with its file and line."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from lit_eff.errors import UserError, nearest, require

TxtUnit = Literal["file", "paragraph", "line"]


@dataclass(frozen=True)
class Record:
    """One document as the source holds it: ``label`` is None unless asked for; ``place`` is for errors."""

    text: str
    label: str | None
    place: str


@dataclass(frozen=True)
class TextFormat:
    """How files are read.

    Attributes:
        text_column, label_column: column of a csv, parquet or Hugging Face table, or key of a jsonl object.
        encoding: of txt, csv and jsonl files; a UTF-8 byte-order mark is dropped.
        txt_unit: what one document of a txt file is: the whole ``file``, a ``paragraph`` (blank lines
            between) or a ``line``.
    """

    text_column: str = "text"
    label_column: str | None = None
    encoding: str = "utf-8"
    txt_unit: TxtUnit = "file"

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding)
        except LookupError:
            raise UserError(
                f"unknown encoding {self.encoding!r}; utf-8, utf-16 and latin-1 are usual"
            ) from None

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text_column,) if self.label_column is None else (self.text_column, self.label_column)


def read_records(path: Path, form: TextFormat) -> Iterator[Record]:
    """The records of one file, in its order.

    Raises:
        UserError: naming file and line for an empty or unreadable file, a corrupt row, bytes that are not
            in the encoding, a missing column or a value that is not text.
    """
    reader = _READERS[path.suffix.lower()]
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; expected at least one document")
        found = False
        for record in reader(path, form):
            found = True
            yield record
    except UnicodeDecodeError:
        raise _encoding_error(path, form.encoding) from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if not found:
        raise UserError(f"{path} holds no documents, only a header or blank lines")


def check_columns(place: str, present: list[str], form: TextFormat) -> None:
    """Raise UserError when a column asked for is not among those present."""
    for option, column in zip(("text_column", "label_column"), form.columns, strict=False):
        if column not in present:
            close = nearest(column, present)
            listed = "" if "expected one of" in close else f" (columns: {', '.join(present)})"
            raise UserError(f"{place} has no column {column!r}{close}{listed}; set data.{option}")


def make_record(row: dict[str, Any], place: str, form: TextFormat) -> Record:
    """Raise UserError for a text that is not a string, or a missing label."""
    text = row[form.text_column]
    if not isinstance(text, str):
        raise UserError(f"{place}: {form.text_column!r} holds {_kind(text)}; expected text")
    label: str | None = None
    if form.label_column is not None:
        value = row[form.label_column]
        if value == "" or not isinstance(value, str | int):
            raise UserError(
                f"{place}: {form.label_column!r} holds {_kind(value)}; expected a class name or number"
            )
        label = str(value)
    return Record(text, label, place)


def _kind(value: object) -> str:
    return "nothing" if value is None or value == "" else f"{value!r:.40} ({type(value).__name__})"


def _open(path: Path, encoding: str, newline: str | None = None) -> IO[str]:
    signature = codecs.lookup(encoding).name == "utf-8"
    return path.open(encoding="utf-8-sig" if signature else encoding, newline=newline)


def _encoding_error(path: Path, encoding: str) -> UserError:
    """Decode again line by line: a buffered reader does not know which line it was on."""
    decoder = codecs.getincrementaldecoder(encoding)()
    place, what = str(path), "a byte"
    with path.open("rb") as file:
        number = 1
        try:
            for line in file:
                decoder.decode(line)
                number += 1
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            place, what = f"{path}:{number}", f"byte 0x{error.object[error.start]:02x}"
    return UserError(
        f"{place}: {what} is not {encoding}; save it as {encoding} or set data.encoding (latin-1, ...)"
    )


def _read_txt(path: Path, form: TextFormat) -> Iterator[Record]:
    with _open(path, form.encoding) as file:
        if form.label_column is not None:
            raise UserError(f"{path}: a txt file holds no labels; use csv, jsonl or parquet")
        if form.txt_unit == "file":
            yield Record(file.read(), None, str(path))
            return
        lines: list[str] = []
        start = 1
        for number, line in enumerate(file, start=1):
            if form.txt_unit == "line":
                if line.strip():
                    yield Record(line, None, f"{path}:{number}")
            elif line.strip():
                start = start if lines else number
                lines.append(line)
            elif lines:
                yield Record("".join(lines), None, f"{path}:{start}")
                lines = []
        if lines:
            yield Record("".join(lines), None, f"{path}:{start}")


def _read_csv(path: Path, form: TextFormat) -> Iterator[Record]:
    # The csv module refuses fields over 131,072 characters; a document may well be longer.
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with _open(path, form.encoding, newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        line = 1
        try:
            header = next(rows, [])
            check_columns(f"{path}:1", header, form)
            while True:
                line = rows.line_num + 1
                row = next(rows, None)
                if row is None:
                    return
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}:{line}: the row has {len(row)} columns, the header {len(header)}"
                    )
                yield make_record(dict(zip(header, row, strict=True)), f"{path}:{line}", form)
        except csv.Error as error:
            raise UserError(f"{path}:{line}: corrupt csv row ({error}); check its quotes") from None


def _read_jsonl(path: Path, form: TextFormat) -> Iterator[Record]:
    with _open(path, form.encoding) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}:{number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{place}: not valid JSON ({error.msg}, column {error.colno})") from None
            if not isinstance(row, dict):
                raise UserError(f"{place}: holds a JSON {type(row).__name__}; expected one object a line")
            check_columns(place, list(row), form)
            yield make_record(row, place, form)


def _read_parquet(path: Path, form: TextFormat) -> Iterator[Record]:
    parquet = require("pyarrow.parquet", "train")
    invalid = require("pyarrow", "train").ArrowInvalid
    try:
        with parquet.ParquetFile(path) as file:
            check_columns(str(path), list(file.schema_arrow.names), form)
            number = 0
            for batch in file.iter_batches(batch_size=1024, columns=list(form.columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield make_record(row, f"{path}: row {number}", form)
    except invalid as error:
        raise UserError(f"{path}: corrupt parquet file ({str(error).splitlines()[0]})") from None


_READERS = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
