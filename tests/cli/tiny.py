"""A text and a model small enough that a whole run takes a second or two."""

from __future__ import annotations

import random
from pathlib import Path

WORDS = (
    "the a cat dog bird runs sleeps sings over under near house river tree red blue green quickly slowly then"
)
VOCABULARY, CONTEXT = 300, 32


def write_text(folder: Path, lines: int = 400) -> Path:
    """Distinct documents, one a line: several in every split."""
    choose = random.Random(0)
    path = folder / "text.txt"
    path.write_text(
        "".join(f"{' '.join(choose.choices(WORDS.split(), k=30))}, number {i}.\n" for i in range(lines)),
        encoding="utf-8",
    )
    return path


def write_reviews(folder: Path, rows: int = 400) -> Path:
    """Labelled documents: the label is one of the words."""
    choose = random.Random(0)
    path = folder / "reviews.csv"
    lines = ["text,label"]
    for i in range(rows):
        label = choose.choice(("negative", "positive"))
        word = {"negative": "dull", "positive": "lovely"}[label]
        lines.append(f"{' '.join(choose.choices(WORDS.split(), k=12))} {word} {i},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def data_overrides(source: Path, cache: Path) -> list[str]:
    """Any recipe on this file."""
    unit = ["data.init_args.txt_unit=line"] if source.suffix == ".txt" else []
    return [
        f"data.init_args.source={source}",
        f"data.init_args.cache_dir={cache}",
        "data.init_args.batch_size=4",
        f"vars.vocab_size={VOCABULARY}",
        f"vars.context={CONTEXT}",
        *unit,
    ]


def model_overrides(layers: int | None = None) -> list[str]:
    """Any recipe's model with tiny matrices (and fewer layers)."""
    config = "model.init_args.config"
    sizes = [f"{config}.model_dim=16", f"{config}.heads=4", f"{config}.mlp_dim=32", f"{config}.kv_heads=null"]
    return sizes if layers is None else [*sizes, f"{config}.layers={layers}"]


def trainer_overrides(steps: int = 4) -> list[str]:
    """A few steps in float32, every one logged, validated twice, not traced."""
    return [
        f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={steps // 2}",
        "trainer.log_every_n_steps=1",
        "trainer.callbacks.profile=null",
    ]


def quickstart(source: Path, cache: Path, steps: int = 4) -> list[str]:
    """Arguments of a command that runs the quickstart's recipe on ``source``."""
    tiny = [*data_overrides(source, cache), *model_overrides(), *trainer_overrides(steps)]
    return ["--config", "quickstart", *tiny]
