"""Hugging Face datasets as a source: from the hub, or a folder written by ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_eff.data.readers import Record, TextFormat, check_columns, make_record
from lit_eff.errors import UserError, require
from lit_eff.files import sha256_bytes, sha256_file


@dataclass(frozen=True)
class HuggingFaceSource:
    """Every row of the named ``datasets.Dataset`` tables, one after the other; splitting is ours."""

    name: str
    tables: dict[str, Any]
    content: str
    form: TextFormat

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of a ``ClassLabel`` label column."""
        first = next(iter(self.tables.values()))
        names = getattr(first.features.get(self.form.label_column), "names", None)
        return None if names is None else tuple(names)

    def fingerprint(self) -> str:
        return self.content

    def records(self) -> Iterator[Record]:
        column = self.form.label_column
        names = self.class_names
        for split, table in self.tables.items():
            place = f"{self.name}[{split}]"
            check_columns(place, table.column_names, self.form)
            for number, row in enumerate(table.select_columns(list(self.form.columns)), start=1):
                if column is not None and names is not None:
                    row[column] = _class_name(row[column], names, f"{place} row {number}")
                yield make_record(row, f"{place} row {number}", self.form)


def _class_name(label: int | None, names: tuple[str, ...], place: str) -> str:
    if label is None or not 0 <= label < len(names):  # unlabelled rows hold -1
        raise UserError(
            f"{place} has no label ({label}); name the labelled splits: hf:NAME:CONFIG:SPLIT+SPLIT"
        )
    return names[label]


def load_hub(reference: str, form: TextFormat) -> HuggingFaceSource:
    """``NAME[:CONFIG[:SPLIT]]``; an empty CONFIG is the default one, SPLIT is as in ``load_dataset``
    (``train+test``, ``train[:10%]``), and all splits when left out.

    Raises:
        UserError: the library is not installed, or it could not load the dataset.
    """
    datasets = require("datasets", "hf")
    name, _, rest = reference.partition(":")
    config, _, split = rest.partition(":")
    try:
        loaded = datasets.load_dataset(name, config or None, split=split or None)
    except Exception as error:  # the hub client raises many kinds: network, missing, gated, bad split
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot load the Hugging Face dataset 'hf:{reference}': {reason}") from error
    tables = _tables(loaded)
    # The library's fingerprint is of the dataset's revision, configuration and split.
    content = sha256_bytes(*(f"{split} {table._fingerprint}".encode() for split, table in tables.items()))
    return HuggingFaceSource(f"hf:{reference}", tables, content, form)


def load_saved(folder: Path, form: TextFormat) -> HuggingFaceSource:
    """A folder written by ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk``.

    Raises:
        UserError: the library is not installed, or it could not read the folder.
    """
    datasets = require("datasets", "hf")
    try:
        tables = _tables(datasets.load_from_disk(str(folder)))
    except Exception as error:
        raise UserError(f"cannot load the saved dataset {folder}: {error}") from error
    files = sorted(path for path in folder.rglob("*.arrow"))
    return HuggingFaceSource(
        str(folder), tables, sha256_bytes(*(sha256_file(f).encode() for f in files)), form
    )


def _tables(loaded: Any) -> dict[str, Any]:
    """A dataset has columns, a dictionary of datasets has splits."""
    if isinstance(loaded, dict):
        return {split: loaded[split] for split in sorted(loaded)}
    return {str(loaded.split or "all"): loaded}
