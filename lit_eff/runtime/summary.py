"""What a number of rounds cost and yielded, in the figures that reports and metrics show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lit_eff.runtime.decode import Round


@dataclass(frozen=True)
class Summary:
    """Counts over rounds, all measured.

    Attributes:
        tokens: emitted.
        seconds: spent in the rounds, the prompt included.
        drafted, accepted: tokens proposed by the draft exit, and those of them emitted.
        layer_launches: layers called; in certified mode this is the sum of the layers tokens left at.
        layer_tokens: layers x tokens computed, the prompt and deferred tokens included.
        exits: emitted tokens by the layer they came from (not in lossless mode).
    """

    rounds: int
    tokens: int
    seconds: float
    drafted: int
    accepted: int
    layer_launches: int
    layer_tokens: int
    exits: dict[int, int]

    @classmethod
    def of(cls, rounds: Iterable[Round], exit_layers: Sequence[int]) -> Summary:
        rounds = list(rounds)
        exits: Counter[int] = Counter()
        for one in rounds:
            if one.exit_index is not None:
                exits[exit_layers[one.exit_index]] += len(one.tokens)
        return cls(
            rounds=len(rounds),
            tokens=sum(len(one.tokens) for one in rounds),
            seconds=sum(one.seconds for one in rounds),
            drafted=sum(len(one.drafted) for one in rounds),
            accepted=sum(one.accepted for one in rounds),
            layer_launches=sum(one.layer_launches for one in rounds),
            layer_tokens=sum(one.layer_tokens for one in rounds),
            exits=dict(sorted(exits.items())),
        )

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_round(self) -> float:
        return self.tokens / self.rounds if self.rounds else 0.0

    @property
    def layers_per_token(self) -> float:
        """Layers launched per emitted token: the depth of the model in autoregressive mode."""
        return self.layer_launches / self.tokens if self.tokens else 0.0

    @property
    def acceptance(self) -> float | None:
        """Share of the drafts that were emitted; ``None`` when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else None
