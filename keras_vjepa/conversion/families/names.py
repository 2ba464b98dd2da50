"""How the files of each family call the tensors of one vision transformer (App. D.1)."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from keras_vjepa.conversion.entries import (
    PATCH_KERNEL,
    SAME,
    TRANSPOSED,
    TUBELET_KERNEL,
    WITHOUT_BATCH,
    Entry,
    Rearrangement,
    linear_entries,
    norm_entries,
)
from keras_vjepa.models.families import VisionBackbone

# [dim] to (1, dim), and [1, 1, dim] to (1, dim)
_AS_ROW = Rearrangement(lambda x: x[None], lambda x: x[0])


@dataclasses.dataclass(frozen=True)
class Names:
    """Names in a layout; those of a block follow `block` and its number.

    Attributes:
        patch: the projection of patches.
        table: learned or stored positions; "" for a layout without.
        class_token: the class token.
        registers: register tokens.
        input_norm: the norm before the blocks.
        norm: the norm after them.
        projection: of the class token.
        block: what the names of a block begin with.
        attention_norm: first norm of a block.
        qkv: fused projection, or the three of query, key and value.
        joint: between the name of a fused projection and "weight" or "bias".
        value_bias: of queries and values, where keys have none.
        output: projection after attention.
        mlp_norm: second norm of a block.
        mlp: its two linear layers.
        swiglu: the same of a SwiGLU.
        scales: of the branches.
        is_plain: whether table and class token have no leading axes of length one.
    """

    patch: str = "patch_embed.proj"
    table: str = "pos_embed"
    class_token: str = "cls_token"
    registers: str = "register_tokens"
    input_norm: str = ""
    norm: str = "norm"
    projection: str = ""
    block: str = "blocks"
    attention_norm: str = "norm1"
    qkv: tuple[str, ...] = ("attn.qkv",)
    joint: str = "."
    value_bias: tuple[str, str] = ("attn.q_bias", "attn.v_bias")
    output: str = "attn.proj"
    mlp_norm: str = "norm2"
    mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2")
    swiglu: tuple[str, str] = ("mlp.w12", "mlp.w3")
    scales: tuple[str, str] = ("ls1.gamma", "ls2.gamma")
    is_plain: bool = False

    def entries(self, backbone: VisionBackbone) -> Iterator[Entry]:
        """List the layout's name of every tensor of a backbone."""
        facts = backbone.facts
        kernel = PATCH_KERNEL if backbone.is_image_model else TUBELET_KERNEL
        yield Entry((f"{self.patch}.weight",), backbone.tubelet_embedding.kernel, kernel)
        if facts.patch_bias:
            yield Entry((f"{self.patch}.bias",), backbone.tubelet_embedding.bias, SAME)
        if facts.class_token:
            rearrange = _AS_ROW if self.is_plain else WITHOUT_BATCH
            yield Entry((self.class_token,), backbone.class_token, rearrange)
        if backbone.num_register_tokens:
            yield Entry((self.registers,), backbone.register_tokens, WITHOUT_BATCH)
        if facts.stores_table and self.table:
            rearrange = SAME if self.is_plain else WITHOUT_BATCH
            yield Entry((self.table,), backbone.position_table, rearrange)
        if facts.input_norm:
            yield from norm_entries(self.input_norm, backbone.input_norm)
        for number, block in enumerate(backbone.blocks):
            yield from self._of_block(f"{self.block}.{number}", block)
        if backbone.final_norm:
            yield from norm_entries(self.norm, backbone.norm)
        if backbone.projection_dim is not None:
            yield Entry((self.projection,), backbone.projection, self._of_projection)

    @property
    def _of_projection(self) -> Rearrangement:
        """Tell CLIP's own, which has the inputs first, from a linear layer's."""
        return TRANSPOSED if self.projection.endswith(".weight") else SAME

    def _of_block(self, name: str, block: Any) -> Iterator[Entry]:
        yield from norm_entries(f"{name}.{self.attention_norm}", block.attention_norm)
        yield from self._of_attention(name, block)
        yield from linear_entries([f"{name}.{self.output}"], block.attention.output_projection)
        yield from norm_entries(f"{name}.{self.mlp_norm}", block.mlp_norm)
        first, second = self.swiglu if block.activation == "swiglu" else self.mlp
        yield from linear_entries([f"{name}.{first}"], block.mlp_hidden)
        yield from linear_entries([f"{name}.{second}"], block.mlp_output)
        if block.layer_scale:
            yield Entry((f"{name}.{self.scales[0]}",), block.attention_scale, SAME)
            yield Entry((f"{name}.{self.scales[1]}",), block.mlp_scale, SAME)

    def _of_attention(self, name: str, block: Any) -> Iterator[Entry]:
        fused = block.attention.query_key_value
        ends = [(f"{name}.{part}{self.joint}weight", f"{name}.{part}{self.joint}bias")
                for part in self.qkv]  # fmt: skip
        yield Entry(tuple(weight for weight, _ in ends), fused.kernel, TRANSPOSED)
        if block.key_bias:
            yield Entry(tuple(bias for _, bias in ends), fused.bias, SAME)
            return
        query, value = self.value_bias
        yield Entry((f"{name}.{query}",), block.attention.query_bias, SAME)
        yield Entry((f"{name}.{value}",), block.attention.value_bias, SAME)
