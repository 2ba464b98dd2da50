"""Define the rivals' transformers in plain PyTorch; see `plain_torch_rivals.py` (App. D.1)."""

import torch
from torch import nn
from torch.nn import functional

from keras_vjepa.models.families import VisionBackbone
from keras_vjepa.tools.plain_torch_parts import MLP, Patches


class Attention(nn.Module):
    """Lets each token attend to the others; keys may have no bias."""

    def __init__(self, dim: int, num_heads: int, key_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=key_bias)
        if not key_bias:
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = self.qkv.bias
        if bias is None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        packed = functional.linear(x, self.qkv.weight, bias)
        query, key, value = packed.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class Scale(nn.Module):
    """Multiplies each channel by a number of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Applies attention and an MLP to tokens, each after a norm and added to its input."""

    def __init__(self, of: VisionBackbone) -> None:
        super().__init__()
        dim, epsilon = of.hidden_dim, of.layer_norm_epsilon
        self.norm1 = nn.LayerNorm(dim, eps=epsilon)
        self.attn = Attention(dim, of.num_heads, of.facts.key_bias)
        self.norm2 = nn.LayerNorm(dim, eps=epsilon)
        self.mlp = MLP(dim, of.mlp_dim, of.activation)
        self.ls1, self.ls2 = (
            Scale(dim) if of.facts.layer_scale else nn.Identity() for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Vision(nn.Module):
    """Encodes inputs of one size, of any family but Hiera, as a backbone of it does.

    Args:
        of: a backbone with the architecture.
    """

    def __init__(self, of: VisionBackbone) -> None:
        super().__init__()
        facts, dim, epsilon = of.facts, of.hidden_dim, of.layer_norm_epsilon
        size = (of.tubelet_size, of.patch_size, of.patch_size)[of.is_image_model :]
        self.patch_embed = Patches(dim, size, size, [0] * len(size), facts.patch_bias)
        if facts.class_token:
            self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        if of.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.randn(1, of.num_register_tokens, dim))
        if facts.trains_table:
            self.pos_embed = nn.Parameter(torch.randn(1, of.num_tokens + facts.class_token, dim))
        else:
            table = torch.tensor(of.fresh_table(of.grid_shape), dtype=torch.float32)[None]
            self.register_buffer("pos_embed", table, persistent=facts.stores_table)
        self.norm_pre = nn.LayerNorm(dim, eps=epsilon) if facts.input_norm else nn.Identity()
        self.blocks = nn.ModuleList(Block(of) for _ in range(of.num_layers))
        self.norm = nn.LayerNorm(dim, eps=epsilon) if of.final_norm else nn.Identity()
        self.num_prefix_tokens = of.num_prefix_tokens

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x)
        if hasattr(self, "cls_token"):
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = x + self.pos_embed
        if hasattr(self, "register_tokens"):
            registers = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
        x = self.norm_pre(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, self.num_prefix_tokens :]
