"""One frozen description of a transformer: the Llama/Qwen and GPT-2 families and BERT-type encoders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from lit_eff.errors import UserError, nearest

HeadKind = Literal["shared", "norm", "linear", "mlp"]
AttentionBackend = Literal["auto", "triton", "sdpa", "reference"]


@dataclass(frozen=True)
class ExitConfig:
    """Where the model may stop early, and the kind of head that reads the hidden state there.

    Attributes:
        layers: intermediate exits as counts of layers run, 1-based and increasing (``(2, 4)``: after the
            second and the fourth layer). The last layer always has a head and is not listed.
        head: ``shared`` reads every exit with the final norm and output matrix; ``norm`` gives each exit its
            own norm; ``linear`` its own norm and output matrix; ``mlp`` its own norm, a residual SwiGLU or
            GELU block, and the shared output matrix.
    """

    layers: tuple[int, ...] = ()
    head: HeadKind = "shared"


@dataclass(frozen=True)
class ModelConfig:
    """A transformer's shape and family traits. Sizes are counts; ``dropout`` is a probability.

    Attributes:
        kv_heads: key/value heads (GQA); ``None`` means ``heads``.
        head_dim: ``None`` means ``model_dim // heads``.
        mlp_dim: inner width of the MLP; ``None`` means ``4 * model_dim``.
        norm_position: ``pre`` (GPT, Llama) or ``post`` (BERT).
        rotary_dim: rotated leading part of each head; ``None`` means all of it.
        mlp_bias, attention_bias, qkv_bias: biases of the MLP, of the attention output, of q, k and v.
        qk_norm: RMSNorm over the head dimension of q and k (Qwen3).
        window: a token sees itself and the ``window - 1`` tokens before it; ``None`` sees all.
        attention_softcap, logit_softcap: ``cap * tanh(x / cap)`` on scores and on logits; ``None`` is off.
        token_types: size of the segment embedding (BERT); 0 is none.
        embedding_norm: a norm right after the embeddings (BERT).
        head_transform: dense, GELU and norm before the output matrix (BERT's masked-LM head).
        labels: 0 for a language model; otherwise the classes of a sequence classifier.
        pooling: which hidden state a classifier reads: ``first``, ``last`` (non-padding) or ``mean``.
        pooler: dense and tanh before a classifier's output matrix (BERT).
        init_std: standard deviation of new weights; projections back into a pre-norm residual stream get
            ``init_std / sqrt(2 * layers)`` (GPT-2).

    Raises:
        UserError: for sizes that do not fit together.
    """

    vocab_size: int
    layers: int = 8
    model_dim: int = 256
    heads: int = 4
    kv_heads: int | None = None
    head_dim: int | None = None
    mlp_dim: int | None = None
    context: int = 512
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    norm_position: Literal["pre", "post"] = "pre"
    positions: Literal["rope", "learned"] = "rope"
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rotary_dim: int | None = None
    mlp: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu"
    qkv_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    tied: bool = True
    causal: bool = True
    window: int | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    dropout: float = 0.0
    token_types: int = 0
    embedding_norm: bool = False
    head_transform: bool = False
    labels: int = 0
    pooling: Literal["first", "last", "mean"] = "first"
    pooler: bool = False
    init_std: float = 0.02
    exits: ExitConfig = field(default_factory=ExitConfig)

    def __post_init__(self) -> None:
        positive = ("vocab_size", "layers", "model_dim", "heads", "context")
        for name in positive:
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; expected a positive integer")
        if self.head_dim is None and self.model_dim % self.heads:
            raise UserError(
                f"model.model_dim {self.model_dim} is not a multiple of model.heads {self.heads}; "
                "change one or set model.head_dim"
            )
        if self.heads % self.n_kv_heads:
            raise UserError(
                f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}; "
                "every key/value head serves the same number of query heads"
            )
        if self.positions == "rope" and self.rotary % 2:
            raise UserError(f"rotary dimension {self.rotary} is odd; rotary embedding rotates pairs")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout is {self.dropout}; expected a probability below 1")
        listed = self.exits.layers
        if list(listed) != sorted(set(listed)) or any(not 1 <= layer < self.layers for layer in listed):
            raise UserError(
                f"exits.layers is {list(listed)}; expected increasing counts from 1 to {self.layers - 1} "
                f"(the last layer, {self.layers}, always has a head and is not listed)"
            )

    @property
    def n_kv_heads(self) -> int:
        return self.kv_heads if self.kv_heads is not None else self.heads

    @property
    def head_size(self) -> int:
        return self.head_dim if self.head_dim is not None else self.model_dim // self.heads

    @property
    def rotary(self) -> int:
        return self.rotary_dim if self.rotary_dim is not None else self.head_size

    @property
    def mlp_size(self) -> int:
        return self.mlp_dim if self.mlp_dim is not None else 4 * self.model_dim

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """Layers run at each head, shallow to deep; the last is ``layers``."""
        return (*self.exits.layers, self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-ready types; :meth:`from_dict` is the inverse."""
        from dataclasses import asdict

        values = asdict(self)
        values["exits"]["layers"] = list(self.exits.layers)
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Raises UserError for a key this version does not know."""
        values = dict(values)
        for key in values:
            if key not in cls.__dataclass_fields__:
                raise UserError(f"unknown model setting {key!r}{nearest(key, cls.__dataclass_fields__)}")
        exits = dict(values.pop("exits", {}))
        exits["layers"] = tuple(exits.get("layers", ()))
        return cls(**values, exits=ExitConfig(**exits))
