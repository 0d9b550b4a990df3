"""PyTorch's transformers for the benchmarks, their parameters named as the authors name them."""

import torch
import torch.nn.functional as F
from torch import nn

from diffjax.models.embeddings import grid_positions

__all__ = ["DiT", "UViT", "sinusoids"]


def sinusoids(t: torch.Tensor, width: int, last: int = 0) -> list[torch.Tensor]:
    """Sines and cosines of step indices; the last frequency is 1/10000 where ``last`` is 1."""
    half = width // 2
    frequencies = 10_000.0 ** (-torch.arange(half) / (half - last))
    angles = t[:, None] * frequencies
    return [angles.sin(), angles.cos()]


class DiT(nn.Module):
    """The diffusion transformer, unconditional."""

    def __init__(
        self,
        *,
        input_size: int,
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
    ):
        super().__init__()
        self.patch, width = patch_size, hidden_size
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(
            nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(AdaptiveBlock(width, num_heads) for _ in range(depth))
        self.final_layer = nn.Module()
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final_layer.linear = nn.Linear(width, patch_size**2 * in_channels)
        grid = input_size // patch_size
        self.register_buffer("pos_embed", torch.tensor(grid_positions(grid, grid, width))[None])

    def forward(self, x, t):
        """Maps images and step indices to images."""
        c = self.t_embedder.mlp(torch.cat(sinusoids(t, 256)[::-1], -1))
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = block(h, c)
        shift, scale = self.final_layer.adaLN_modulation(c)[:, None].chunk(2, -1)
        return image(self.final_layer.linear(modulate(h, shift, scale)), self.patch, x)


def image(tokens: torch.Tensor, patch: int, like: torch.Tensor) -> torch.Tensor:
    """Puts patches together again, to an image of the shape of ``like``."""
    batch, channels, height, width = like.shape
    h = tokens.view(batch, height // patch, width // patch, patch, patch, channels)
    return h.permute(0, 5, 1, 3, 2, 4).reshape(like.shape)


class Attention(nn.Module):
    """Self-attention of tokens ``(batch, tokens, width)``."""

    def __init__(self, width: int, heads: int, bias: bool = True):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers, four times as wide in between."""

    def __init__(self, width: int, approximate: str):
        super().__init__()
        self.approximate = approximate
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))


class AdaptiveBlock(nn.Module):
    """Attention and MLP under adaptive normalisation."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), MLP(width, "tanh")
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(
            6, -1
        )
        x = x + gate1 * self.attn(modulate(x, shift1, scale1))
        return x + gate2 * self.mlp(modulate(x, shift2, scale2))


def modulate(x, shift, scale):
    """Normalises tokens, then scales and shifts them."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), 1 + scale)


class UViT(nn.Module):
    """U-ViT, unconditional."""

    def __init__(
        self,
        *,
        img_size: int,
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
    ):
        super().__init__()
        self.patch, self.width = patch_size, embed_dim
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (img_size // patch_size) ** 2, embed_dim))
        half = range(depth // 2)
        self.in_blocks = nn.ModuleList(PlainBlock(embed_dim, num_heads) for _ in half)
        self.mid_block = PlainBlock(embed_dim, num_heads)
        self.out_blocks = nn.ModuleList(PlainBlock(embed_dim, num_heads, True) for _ in half)
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * in_chans)
        self.final_layer = nn.Conv2d(in_chans, in_chans, 3, padding=1)

    def forward(self, x, t):
        """Maps images and step indices to images."""
        time = torch.cat(sinusoids(t, self.width)[::-1], -1)[:, None]
        h = torch.cat([time, self.patch_embed.proj(x).flatten(2).transpose(1, 2)], 1)
        h, skips = h + self.pos_embed, []
        for block in self.in_blocks:
            h = block(h)
            skips.append(h)
        h = self.mid_block(h)
        for block in self.out_blocks:
            h = block(torch.cat([h, skips.pop()], -1))
        return self.final_layer(image(self.decoder_pred(self.norm(h))[:, 1:], self.patch, x))


class PlainBlock(nn.Module):
    """A block of the vision transformer, which may take in an earlier one's output."""

    def __init__(self, width: int, heads: int, skip: bool = False):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width, heads, bias=False)
        self.norm2, self.mlp = nn.LayerNorm(width), MLP(width, "none")
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x):
        if self.skip_linear is not None:
            x = self.skip_linear(x)
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))
