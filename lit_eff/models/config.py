"""One frozen description of a transformer: the Llama/Qwen and GPT-2 families and BERT-type encoders."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from lit_eff.errors import UserError, nearest

HeadKind = Literal["shared", "norm", "linear", "mlp"]
AttentionBackend = Literal["auto", "triton", "sdpa", "reference"]
Norm = Literal["rms", "layer"]
NormPosition = Literal["pre", "post"]
Positions = Literal["rope", "learned"]
Activation = Literal["swiglu", "gelu", "gelu_tanh"]
Pooling = Literal["first", "last", "mean"]

_CHOICES = {
    "norm": get_args(Norm),
    "norm_position": get_args(NormPosition),
    "positions": get_args(Positions),
    "mlp": get_args(Activation),
    "pooling": get_args(Pooling),
}
# What each kind of rotary scaling must say, in Hugging Face's words.
_ROPE_KEYS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class ExitConfig:
    """Where the model may stop early, and the kind of head that reads the hidden state there.

    Attributes:
        layers: intermediate exits as counts of layers run, 1-based and increasing (``(2, 4)``: after the
            second and the fourth layer). The last layer always has a head and is not listed.
        head: ``shared`` reads every exit with the final norm and output matrix; ``norm`` gives each exit its
            own norm; ``linear`` its own norm and output matrix; ``mlp`` its own norm, a residual SwiGLU or
            GELU block, and the shared output matrix.
        classifier: one trained confidence measure for all early exits,
            :meth:`lit_eff.models.transformer.Transformer.exit_score`.
    """

    layers: tuple[int, ...] = ()
    head: HeadKind = "shared"
    classifier: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """A transformer's shape and family traits. Sizes are counts; ``dropout`` is a probability.

    Attributes:
        kv_heads: key/value heads (GQA); ``None`` means ``heads``.
        head_dim: ``None`` means ``model_dim // heads``.
        mlp_dim: inner width of the MLP; ``None`` means ``4 * model_dim``.
        norm_position: ``pre`` (GPT, Llama) or ``post`` (BERT).
        rotary_dim: rotated leading part of each head; ``None`` means all of it.
        rope_scaling: ``None``, or Hugging Face's keys for ``rope_type`` ``linear`` or ``llama3``.
        mlp_bias, attention_bias, qkv_bias: biases of the MLP, of the attention output, of q, k and v.
        qk_norm: RMSNorm over the head dimension of q and k (Qwen3).
        window: a token sees itself and the ``window - 1`` tokens before it (causal models); ``None``: all.
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
    norm: Norm = "rms"
    norm_eps: float = 1e-5
    norm_position: NormPosition = "pre"
    positions: Positions = "rope"
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rotary_dim: int | None = None
    mlp: Activation = "swiglu"
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
    pooling: Pooling = "first"
    pooler: bool = False
    init_std: float = 0.02
    exits: ExitConfig = field(default_factory=ExitConfig)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "layers", "model_dim", "heads", "context", "n_kv_heads", "head_size"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; expected a positive integer")
        for name, options in _CHOICES.items():
            if getattr(self, name) not in options:
                raise UserError(f"model.{name} is {getattr(self, name)!r}; expected one of {list(options)}")
        self._check_heads()
        self._check_attention()
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"model.dropout is {self.dropout}; expected a probability below 1")
        if self.labels < 0 or self.labels == 1:
            raise UserError(f"model.labels is {self.labels}; expected 0 (none) or at least 2")
        if self.logit_softcap is not None and not self.logit_softcap > 0:
            raise UserError(
                f"model.logit_softcap is {self.logit_softcap}; expected a positive number or null"
            )
        self._check_exits()

    def _check_heads(self) -> None:
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
        if self.positions != "rope":
            return
        if self.rotary % 2 or not 0 < self.rotary <= self.head_size:
            raise UserError(
                f"model.rotary_dim is {self.rotary}; expected an even number up to head dim {self.head_size}"
            )
        scaling = self.rope_scaling or {}
        kind = scaling.get("rope_type", "default")
        if kind not in _ROPE_KEYS:
            raise UserError(f"model.rope_scaling type {kind!r}{nearest(str(kind), _ROPE_KEYS)}")
        missing = [key for key in _ROPE_KEYS[kind] if key not in scaling]
        if missing:
            raise UserError(f"model.rope_scaling of type {kind!r} lacks {', '.join(missing)}")

    def _check_attention(self) -> None:
        if self.window is not None and (self.window < 1 or not self.causal):
            raise UserError(
                f"model.window is {self.window} with causal={self.causal}; "
                "expected a positive integer in a causal model, or null"
            )
        if self.attention_softcap is not None and not self.attention_softcap > 0:
            raise UserError(
                f"model.attention_softcap is {self.attention_softcap}; expected a positive number or null"
            )

    def _check_exits(self) -> None:
        listed = self.exits.layers
        if list(listed) != sorted(set(listed)) or any(not 1 <= layer < self.layers for layer in listed):
            raise UserError(
                f"exits.layers is {list(listed)}; expected increasing counts from 1 to {self.layers - 1} "
                f"(the last layer, {self.layers}, always has a head and is not listed)"
            )
        if self.exits.head not in get_args(HeadKind):
            raise UserError(f"exits.head is {self.exits.head!r}; expected one of {list(get_args(HeadKind))}")
        if self.exits.classifier and not listed:
            raise UserError("exits.classifier is true with no early exits to decide about; set exits.layers")

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
        values = asdict(self)
        values["exits"]["layers"] = list(self.exits.layers)
        if not self.exits.classifier:  # a model without one is described as it was before there were any
            del values["exits"]["classifier"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Raises UserError for a key this version does not know."""
        values = dict(values)
        for key in values:
            if key not in cls.__dataclass_fields__:
                raise UserError(f"unknown model setting {key!r}{nearest(key, cls.__dataclass_fields__)}")
        exits = dict(values.pop("exits", {}))
        for key in exits:
            if key not in ExitConfig.__dataclass_fields__:
                raise UserError(
                    f"unknown exit setting {key!r}{nearest(key, ExitConfig.__dataclass_fields__)}"
                )
        exits["layers"] = tuple(exits.get("layers", ()))
        return cls(**values, exits=ExitConfig(**exits))
