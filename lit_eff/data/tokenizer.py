"""The tokenizer: a byte-level BPE trained on the train split, or one loaded from a file, folder or the hub.

A tokenizer trained here begins every text with ``<|endoftext|>`` (its post-processor does so), the same
token that ends a document: a text read from the first position on looks as it did in training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from lit_eff.data.progress import Stages
from lit_eff.errors import UserError, nearest

END_OF_TEXT = "<|endoftext|>"
# Names of the end-of-text token in well-known tokenizers, for files that do not say which it is.
_KNOWN = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")


@dataclass(frozen=True)
class TokenizerConfig:
    """A tokenizer to load, or else how to train one.

    Attributes:
        path: a ``tokenizer.json``, a folder that holds one (a Hugging Face model folder), or ``hf:NAME``;
            None trains a byte-level BPE.
        vocab_size: tokens to train, the 256 bytes and the end-of-text token among them.
        training_documents: train on this many documents, drawn from the train split by their content hash;
            None takes all of them.
        end_of_text: the token that ends a document; None finds it in the tokenizer's files.
    """

    path: str | None = None
    vocab_size: int = 4096
    training_documents: int | None = None
    end_of_text: str | None = None

    def __post_init__(self) -> None:
        if self.path is None and self.vocab_size < 257:
            raise UserError(
                f"data.tokenizer.vocab_size is {self.vocab_size}; "
                "expected at least 257 (256 bytes and end-of-text)"
            )
        if self.training_documents is not None and self.training_documents < 1:
            raise UserError(
                f"data.tokenizer.training_documents is {self.training_documents}; expected at least 1"
            )


def train_tokenizer(
    texts: Iterable[str], config: TokenizerConfig, *, total: int, progress: Stages
) -> Tokenizer:
    """A byte-level BPE (Sennrich et al. 2016, over bytes as in GPT-2); a function of the texts alone.

    Args:
        texts: the training documents.
        total: their number, for the progress bar in ``progress``.
    """
    end_of_text = config.end_of_text or END_OF_TEXT
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[end_of_text],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )

    def read() -> Iterator[str]:
        # The trainer reads every text first, then merges pairs and cannot say how far it is.
        yield from progress.count(texts, "Counting words for the tokenizer", total)
        progress.wait(f"Merging pairs into {config.vocab_size} tokens")

    tokenizer.train_from_iterator(read(), trainer, length=total)
    begin = (end_of_text, tokenizer.token_to_id(end_of_text))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end_of_text} $A", pair=f"{end_of_text} $A $B", special_tokens=[begin]
    )
    return tokenizer


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a file, a folder or ``hf:NAME``, its truncation and padding switched off.

    Raises:
        UserError: no such file, or not a tokenizer of the ``tokenizers`` library.
    """
    file = _tokenizer_file(path)
    try:
        if file is None:
            tokenizer = Tokenizer.from_pretrained(path.removeprefix("hf:"))
        else:
            tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"data.tokenizer.path {path!r} is not a usable tokenizer: {reason}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _tokenizer_file(path: str) -> Path | None:
    """The tokenizer.json that ``path`` names; None for one on the hub."""
    if path.startswith("hf:"):
        return None
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / "tokenizer.json"
    if not file.is_file():
        raise UserError(
            f"data.tokenizer.path: no file {str(file)!r}; expected a tokenizer.json, its folder, or hf:NAME"
        )
    return file


def find_end_of_text(tokenizer: Tokenizer, config: TokenizerConfig) -> int:
    """The id of the token that ends a document: as configured, else as the folder's
    ``tokenizer_config.json`` names it (``eos_token``), else by its usual names.

    Raises:
        UserError: the tokenizer has no such token.
    """
    declared = config.end_of_text or _declared_end(config.path)
    for name in (declared,) if declared is not None else _KNOWN:
        token = tokenizer.token_to_id(name)
        if token is not None:
            return int(token)
    special = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    if declared is not None:
        raise UserError(
            f"data.tokenizer.end_of_text: the tokenizer has no token {declared!r}{nearest(declared, special)}"
        )
    raise UserError(
        f"which token ends a document? set data.tokenizer.end_of_text to one of {', '.join(special)}"
    )


def _declared_end(path: str | None) -> str | None:
    if path is None or path.startswith("hf:"):
        return None
    file = Path(path).expanduser()
    settings = (file if file.is_dir() else file.parent) / "tokenizer_config.json"
    if not settings.is_file():
        return None
    token = json.loads(settings.read_text(encoding="utf-8")).get("eos_token")
    name: str | None = token["content"] if isinstance(token, dict) else token
    return name


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest id: what an embedding needs, also where ids have gaps."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
