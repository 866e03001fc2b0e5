"""The model's hyper-parameters, under the field names of the released `megalodon/config.py`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

INIT_MODES = ("he", "bert", "xavier", "gaussian")
EFFICIENT_ATTENTION = (None, "swift", "fused")


@dataclass(frozen=True)
class MegalodonConfig:
    """Shape and behaviour of a `Megalodon` model. Immutable; `dataclasses.replace` makes a changed copy.

    Field names and defaults are those of the released `ModelConf`, so its JSON loads with `from_dict`.

    Attributes:
        num_layers: number of blocks.
        model_dim: width D of the residual stream, at least 2.
        z_dim: total width of the shared query/key projection, all heads together; even per head (RoPE).
        value_dim: total width of the values and of the gate, all heads together.
        num_heads: attention heads H; divides `z_dim` and `value_dim`.
        ffn_hidden_dim: width of the feed-forward hidden layer.
        cema_ndim: EMA dimensions N per channel, 1 to 64.
        chunk_size: positions c per attention chunk.
        efficient_attn: None, "swift" or "fused". Chose a kernel in the released code; accepted so that its
            configurations load, and without effect: there is one attention operator here.
        init_mode: how linear weights start: "he" (`kaiming_normal_(a=sqrt(5))`), "bert" (normal, std 0.02),
            "xavier" (`xavier_uniform_`) or "gaussian" (truncated normal, std 1, cut at 3). The released
            "none" leaves memory uninitialized and is refused: to fill weights from a file, build on "meta".
        vocab_size: number of token ids. -1 (the released "set by the tokenizer") must be replaced before a
            model is built.
        output_size: number of logits; -1 means `vocab_size`.
        norm_num_groups: timestep-norm groups G; divides `model_dim`.
        norm_affine: whether the RMSNorm and LayerNorm have learned weights (the timestep norm always has).
        norm_eps: epsilon of every norm.
        rope_base: RoPE base; None means 10000.
        dropout: dropout on the embedding, on h and on the feed-forward output.
        hidden_dropout: dropout on m, on a and on the feed-forward hidden layer.
        attention_dropout: DropKey probability of the attention scores (the released fused kernel's dropout).
        swiglu: gated feed-forward, W2 (silu(W1 f) * (W3 f)).
        rescale_nffn: learned per-channel scale on the feed-forward branch, starting at 0.1 * 0.5^layer.
        scale_emb: multiply embeddings by sqrt(model_dim).
        share_emb: use the embedding matrix as the output matrix.
        layerwise_ckpt: recompute each block's activations in the backward pass instead of storing them.

    Raises:
        ValueError, TypeError: a field has a value no model can have; the text names the field.
    """

    num_layers: int = 8
    model_dim: int = 1024
    z_dim: int = 256
    value_dim: int = 2048
    num_heads: int = 1
    ffn_hidden_dim: int = 2048
    cema_ndim: int = 16
    chunk_size: int = 2048
    efficient_attn: str | None = None
    init_mode: str = "he"
    vocab_size: int = -1
    output_size: int = -1
    norm_num_groups: int = 32
    norm_affine: bool = True
    norm_eps: float = 1e-5
    rope_base: float | None = None
    dropout: float = 0.0
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    swiglu: bool = False
    rescale_nffn: bool = False
    scale_emb: bool = False
    share_emb: bool = False
    layerwise_ckpt: bool = False

    def __post_init__(self) -> None:
        for name in ("num_layers", "model_dim", "z_dim", "value_dim", "num_heads", "ffn_hidden_dim",
                     "cema_ndim", "chunk_size", "norm_num_groups"):  # fmt: skip
            _check(is_int(getattr(self, name)), self, name, "an int", TypeError)
            _check(getattr(self, name) >= 1, self, name, "at least 1")
        for name in ("vocab_size", "output_size"):
            _check(is_int(getattr(self, name)), self, name, "an int", TypeError)
            _check(getattr(self, name) >= 1 or getattr(self, name) == -1, self, name, "at least 1, or -1")
        for name in ("norm_affine", "swiglu", "rescale_nffn", "scale_emb", "share_emb", "layerwise_ckpt"):
            _check(isinstance(getattr(self, name), bool), self, name, "a bool", TypeError)
        for name in ("dropout", "hidden_dropout", "attention_dropout"):
            _check(is_real(getattr(self, name)), self, name, "a number", TypeError)
            _check(0 <= getattr(self, name) < 1, self, name, "in [0, 1)")
        _check(is_real(self.norm_eps), self, "norm_eps", "a number", TypeError)
        _check(0 < self.norm_eps < math.inf, self, "norm_eps", "positive and finite")
        if self.rope_base is not None:
            _check(is_real(self.rope_base), self, "rope_base", "None or a number", TypeError)
            _check(0 < self.rope_base < math.inf, self, "rope_base", "positive and finite")
        _check(self.init_mode in INIT_MODES, self, "init_mode", f"one of {INIT_MODES}")
        _check(
            self.efficient_attn in EFFICIENT_ATTENTION,
            self,
            "efficient_attn",
            f"one of {EFFICIENT_ATTENTION}",
        )

        heads = self.num_heads
        _check(self.model_dim >= 2, self, "model_dim", "at least 2")
        _check(self.z_dim % (2 * heads) == 0, self, "z_dim", f"a multiple of 2 * num_heads = {2 * heads}")
        _check(self.value_dim % heads == 0, self, "value_dim", f"a multiple of num_heads = {heads}")
        _check(self.cema_ndim <= 64, self, "cema_ndim", "at most 64")
        _check(
            self.model_dim % self.norm_num_groups == 0,
            self,
            "norm_num_groups",
            f"a divisor of model_dim = {self.model_dim}",
        )
        _check(
            not self.share_emb or self.num_logits == self.vocab_size,
            self,
            "output_size",
            f"-1 or vocab_size = {self.vocab_size}, because share_emb is True",
        )

    @property
    def num_logits(self) -> int:
        """Rows of the output matrix: `output_size`, or `vocab_size` where that is -1."""
        return self.vocab_size if self.output_size == -1 else self.output_size

    @property
    def rope_theta(self) -> float:
        """The RoPE base with its default filled in."""
        return 10000.0 if self.rope_base is None else float(self.rope_base)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> MegalodonConfig:
        """A named configuration of the released code or the paper, at vocabulary 32000 unless overridden.

        Example: `MegalodonConfig.preset("mega200M", vocab_size=256, dropout=0.1)`.
        """
        if name not in PRESETS:
            raise ValueError(f"MegalodonConfig.preset: name: expected one of {tuple(PRESETS)}, got {name!r}")
        return cls.from_dict({"vocab_size": 32000, **PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> MegalodonConfig:
        """Inverse of `to_dict`; fields that are left out take their defaults, unknown ones are an error."""
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(
                f"MegalodonConfig: {unknown[0]}: expected one of the fields {known}, got {unknown}"
            )
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values, in declaration order."""
        return dataclasses.asdict(self)


def is_int(value: object) -> bool:
    """Whether it is a whole number and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether it is a number and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check(
    ok: bool, config: MegalodonConfig, name: str, expected: str, error: type[Exception] = ValueError
) -> None:
    if not ok:
        raise error(f"MegalodonConfig: {name}: expected {expected}, got {getattr(config, name)!r}")


_SEVEN_BILLION: dict[str, Any] = {
    "num_layers": 32,
    "model_dim": 4096,
    "num_heads": 4,
    "z_dim": 1024,
    "value_dim": 8192,
    "norm_num_groups": 64,
}
_ONE_BILLION: dict[str, Any] = {
    "num_layers": 24,
    "model_dim": 2048,
    "num_heads": 2,
    "z_dim": 512,
    "value_dim": 4096,
    "norm_num_groups": 64,
}

PRESETS: dict[str, dict[str, Any]] = {
    "mega200M": {"num_layers": 12, "model_dim": 1024, "ffn_hidden_dim": 2560},
    "mega1.3B": {**_ONE_BILLION, "ffn_hidden_dim": 4864},
    "mega1.3B_pg19": {
        **_ONE_BILLION,
        "ffn_hidden_dim": 3584,
        "swiglu": True,
        "scale_emb": True,
        "share_emb": True,
    },
    "mega7.1B": {**_SEVEN_BILLION, "ffn_hidden_dim": 11264},
    "mega7.3B": {**_SEVEN_BILLION, "ffn_hidden_dim": 8192, "swiglu": True},
    "paper7B": {
        **_SEVEN_BILLION,
        "ffn_hidden_dim": 8192,
        "swiglu": True,
        "chunk_size": 4096,
        "rope_base": 100000.0,
    },
}
"""Fields in which each preset departs from the defaults: the released `ModelStore`, and the paper's 7B."""
