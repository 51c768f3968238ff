"""Which split a document belongs to: decided by its content alone, before anything is packed.

A document's split does not depend on the other documents, on their order or on any seed, so adding data
never moves a document from one split to another, and two splits never share a text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

from lit_eff.errors import UserError, nearest

DIGEST_BYTES = 16


@dataclass(frozen=True)
class Splits:
    """The fraction of documents in each split; they add up to 1.

    ``calibration`` and ``test`` are for the certificate: neither is seen in training or in validation. They
    are dealt first: the sample recipe's settings were chosen while they were dealt last, so its certificate
    is of other text.
    """

    train: float = 0.9
    validation: float = 0.04
    calibration: float = 0.03
    test: float = 0.03

    def __post_init__(self) -> None:
        fractions = astuple(self)
        if any(not 0 <= fraction <= 1 for fraction in fractions) or abs(sum(fractions) - 1) > 1e-6:
            listed = ", ".join(f"{name} {value:g}" for name, value in zip(SPLITS, fractions, strict=True))
            raise UserError(
                f"data.splits is {listed} (sum {sum(fractions):g}); expected fractions that add up to 1"
            )
        if self.train == 0:
            raise UserError("data.splits.train is 0; expected a fraction above 0")

    def assign(self, digest: bytes) -> int:
        """The index in :data:`SPLITS` of the document with this digest."""
        position = int.from_bytes(digest[:8], "big") / 2**64
        border = 0.0
        for index in reversed(range(len(SPLITS))):
            border += getattr(self, SPLITS[index])
            if position < border:
                return index
        return 0  # the fractions add up to a hair less than 1


SPLITS = tuple(field.name for field in fields(Splits))


def check_split(name: str) -> str:
    """Raise UserError for a name that is not a split."""
    if name not in SPLITS:
        raise UserError(f"no split named {name!r}{nearest(name, SPLITS)}")
    return name


def content_digest(text: str) -> bytes:
    """16 bytes of BLAKE2b over the text: equal texts are duplicates. Its first half decides the split."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def shuffled_key(digest: bytes) -> bytes:
    """A sort key that puts documents in a fixed random order, independent of the half that splits them."""
    return digest[8:] + digest[:8]


def split_hash(digests: Iterable[bytes]) -> str:
    """SHA-256 of a split's documents as a set: their order does not count."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
