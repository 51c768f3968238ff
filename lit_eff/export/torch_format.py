"""The ``torch`` format of a bundle: the state dict as safetensors, the configuration in the manifest."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lit_eff.errors import UserError
from lit_eff.models.checkpoint import model_from_state
from lit_eff.models.config import AttentionBackend, ModelConfig
from lit_eff.models.transformer import Transformer
from lit_eff.runtime.bundle import Bundle

STATE = "model.safetensors"


def write_state(model: Transformer, folder: Path) -> str:
    """Write the weights in their own dtypes; returns the file's name."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / STATE)
    return STATE


def load_model(bundle: Bundle, *, attention_backend: AttentionBackend = "auto") -> Transformer:
    """The model of a bundle with the ``torch`` format, in eval mode on the CPU.

    Raises:
        UserError: for a bundle without that format, or weights that do not fit its configuration.
    """
    name = bundle.manifest.torch
    if name is None:
        raise UserError(
            f"bundle {bundle.path} holds {', '.join(bundle.manifest.formats)} and no torch weights; "
            "export it again with --format torch"
        )
    path = bundle.path / name
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a safetensors file: {error}") from None
    config = ModelConfig.from_dict(bundle.manifest.model)
    return model_from_state(config, state, source=str(path), attention_backend=attention_backend)
