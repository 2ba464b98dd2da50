"""Networks: backbone and predictor, and what a backbone from elsewhere must offer (§3.3, §4.3)."""

from keras_vjepa.models.adapters import (
    DeclaredBackbone,
    FunctionalBackbone,
    TokenEncoder,
    as_token_encoder,
    register_adapter,
)

__all__ = [
    "DeclaredBackbone",
    "FunctionalBackbone",
    "TokenEncoder",
    "as_token_encoder",
    "register_adapter",
]
