"""PyTorch's U-Nets for the benchmarks, their parameters named as the authors name them."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_transformers import sinusoids

__all__ = ["ADM", "NCSNpp"]

ROOT_HALF = 0.5**0.5


class ADM(nn.Module):
    """The U-Net of ADM with scale and shift, and residual blocks that resample; no labels."""

    def __init__(
        self,
        *,
        image_size: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int],
        num_head_channels: int,
    ):
        super().__init__()
        del image_size
        ch, width, self.ch = model_channels, model_channels * channel_mult[0], model_channels
        self.time_embed = nn.Sequential(nn.Linear(ch, 4 * ch), nn.SiLU(), nn.Linear(4 * ch, 4 * ch))

        def stage(into, out, level):
            attends = 2**level in attention_resolutions
            attention = [ADMAttention(out, num_head_channels)] if attends else []
            return nn.ModuleList([ADMBlock(into, out, 4 * ch), *attention])

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, width, 3, padding=1)])])
        widths = [width]
        for level, mult in enumerate(channel_mult):
            if level > 0:
                down = ADMBlock(width, width, 4 * ch, "down")
                self.input_blocks.append(nn.ModuleList([down]))
                widths.append(width)
            for _ in range(num_res_blocks):
                self.input_blocks.append(stage(width, mult * ch, level))
                width = mult * ch
                widths.append(width)
        self.middle_block = nn.ModuleList(
            [
                ADMBlock(width, width, 4 * ch),
                ADMAttention(width, num_head_channels),
                ADMBlock(width, width, 4 * ch),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for _ in range(num_res_blocks + 1):
                self.output_blocks.append(stage(width + widths.pop(), mult * ch, level))
                width = mult * ch
            if level > 0:
                self.output_blocks[-1].append(ADMBlock(width, width, 4 * ch, "up"))
        self.out = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1)
        )

    def forward(self, x, t):
        """Maps images and step indices to images."""
        c = self.time_embed(torch.cat(sinusoids(t, self.ch)[::-1], -1))
        h, skips = x, []
        for stage in self.input_blocks:
            h = through(stage, h, c)
            skips.append(h)
        h = through(self.middle_block, h, c)
        for stage in self.output_blocks:
            h = through(stage, torch.cat([h, skips.pop()], 1), c)
        return self.out(h)


def through(stage: nn.ModuleList, h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """The layers of a stage, of which residual blocks take the conditioning."""
    for layer in stage:
        h = layer(h, c) if isinstance(layer, ADMBlock) else layer(h)
    return h


class ADMBlock(nn.Module):
    """A residual block that may halve or double the resolution."""

    def __init__(self, into: int, out: int, embedding: int, resample: str = ""):
        super().__init__()
        self.resample = resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, into), nn.SiLU(), nn.Conv2d(into, out, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if into == out else nn.Conv2d(into, out, 1)

    def forward(self, x, c):
        norm, act, conv = self.in_layers
        h = act(norm(x))
        if self.resample:
            h, x = (nearest(a, self.resample) for a in (h, x))
        h = conv(h)
        scale, shift = self.emb_layers(c)[:, :, None, None].chunk(2, 1)
        norm, *rest = self.out_layers
        h = torch.addcmul(shift, norm(h), 1 + scale)
        for layer in rest:
            h = layer(h)
        return self.skip_connection(x) + h


def nearest(x: torch.Tensor, direction: str) -> torch.Tensor:
    """Means of 2x2 pixels, or each pixel as 2x2."""
    return F.avg_pool2d(x, 2) if direction == "down" else F.interpolate(x, scale_factor=2)


class ADMAttention(nn.Module):
    """Attention whose queries, keys and values are packed head by head."""

    def __init__(self, width: int, head_channels: int):
        super().__init__()
        self.heads = width // head_channels
        self.norm = nn.GroupNorm(32, width)
        self.qkv, self.proj_out = nn.Conv1d(width, 3 * width, 1), nn.Conv1d(width, width, 1)

    def forward(self, x):
        packed = self.qkv(self.norm(x).flatten(2)).unflatten(1, (self.heads, 3, -1))
        q, k, v = packed.transpose(-1, -2).unbind(2)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).flatten(1, 2)
        return x + self.proj_out(h).view_as(x)


class NCSNpp(nn.Module):
    """NCSN++ with filtered resampling and a residual pyramid of the input; positional times.

    The official modules are one list in the order of use, which the two passes here follow.
    """

    def __init__(
        self,
        *,
        image_size: int,
        nf: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float,
        fir: bool,
        progressive_input: str,
    ):
        super().__init__()
        if (dropout, fir, progressive_input) != (0.0, True, "residual"):
            raise ValueError("this is NCSN++ with fir=True, progressive_input='residual' only")
        self.nf, self.levels, self.blocks = nf, len(ch_mult), num_res_blocks
        attends = [image_size >> level in attn_resolutions for level in range(len(ch_mult))]
        width, widths, pyramid = nf, [nf], 3
        layers = [nn.Linear(nf, 4 * nf), nn.Linear(4 * nf, 4 * nf), nn.Conv2d(3, nf, 3, padding=1)]
        for level, mult in enumerate(ch_mult):
            if level > 0:
                layers += [NCSNBlock(width, width, 4 * nf, "down"), PyramidDown(pyramid, width)]
                pyramid = width
                widths.append(width)
            for _ in range(num_res_blocks):
                layers.append(NCSNBlock(width, mult * nf, 4 * nf))
                width = mult * nf
                layers += [NINAttention(width)] * attends[level]
                widths.append(width)
        layers += [NCSNBlock(width, width, 4 * nf), NINAttention(width)]
        layers.append(NCSNBlock(width, width, 4 * nf))
        for level, mult in reversed(list(enumerate(ch_mult))):
            for _ in range(num_res_blocks + 1):
                layers.append(NCSNBlock(width + widths.pop(), mult * nf, 4 * nf))
                width = mult * nf
            layers += [NINAttention(width)] * attends[level]
            if level > 0:
                layers.append(NCSNBlock(width, width, 4 * nf, "up"))
        layers += [group_norm(width), nn.Conv2d(width, 3, 3, padding=1)]
        self.attends, self.all_modules = attends, nn.ModuleList(layers)
        sigmas = torch.exp(torch.linspace(np.log(50.0), np.log(0.01), 1000))
        self.register_buffer("sigmas", sigmas)

    def forward(self, x, t):
        """Maps images and step indices to images."""
        layers = iter(self.all_modules)
        c = next(layers)(torch.cat(sinusoids(t, self.nf, last=1), -1))
        c = next(layers)(F.silu(c))
        pyramid, skips = x, [next(layers)(x)]
        for level in range(self.levels):
            if level > 0:
                h = next(layers)(skips[-1], c)
                pyramid = ROOT_HALF * (next(layers)(pyramid) + h)
                skips.append(pyramid)
            for _ in range(self.blocks):
                h = next(layers)(skips[-1], c)
                skips.append(next(layers)(h) if self.attends[level] else h)
        h = next(layers)(skips[-1], c)
        h = next(layers)(h)
        h = next(layers)(h, c)
        for level in reversed(range(self.levels)):
            for _ in range(self.blocks + 1):
                h = next(layers)(torch.cat([h, skips.pop()], 1), c)
            h = next(layers)(h) if self.attends[level] else h
            h = next(layers)(h, c) if level > 0 else h
        h = F.silu(next(layers)(h))
        return next(layers)(h)


def group_norm(width: int) -> nn.GroupNorm:
    """Groups of four channels, 32 at most."""
    return nn.GroupNorm(min(width // 4, 32), width, eps=1e-6)


class Filter(nn.Module):
    """The taps (1, 3, 3, 1) along both axes, one channel at a time."""

    def __init__(self, width: int):
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        window = (taps[:, None] * taps).repeat(width, 1, 1, 1)
        self.register_buffer("window", window, persistent=False)

    def forward(self, x, direction):
        groups = len(self.window)
        if direction == "up":
            return F.conv_transpose2d(x, 4 * self.window, stride=2, padding=1, groups=groups)
        stride, padding = (2, 1) if direction == "down" else (1, 2)
        return F.conv2d(x, self.window, stride=stride, padding=padding, groups=groups)


class NCSNBlock(nn.Module):
    """The residual block of BigGAN, which may resample."""

    def __init__(self, into: int, out: int, embedding: int, resample: str = ""):
        super().__init__()
        self.resample = resample
        self.filter = Filter(into) if resample else None
        self.GroupNorm_0, self.Conv_0 = group_norm(into), nn.Conv2d(into, out, 3, padding=1)
        self.Dense_0 = nn.Linear(embedding, out)
        self.GroupNorm_1, self.Conv_1 = group_norm(out), nn.Conv2d(out, out, 3, padding=1)
        self.Conv_2 = nn.Conv2d(into, out, 1) if resample or into != out else nn.Identity()

    def forward(self, x, c):
        h = F.silu(self.GroupNorm_0(x))
        if self.resample:
            h, x = (self.filter(a, self.resample) for a in (h, x))
        h = self.Conv_0(h) + self.Dense_0(F.silu(c))[:, :, None, None]
        h = self.Conv_1(F.silu(self.GroupNorm_1(h)))
        return ROOT_HALF * (self.Conv_2(x) + h)


class PyramidDown(nn.Module):
    """A filter and a strided 3x3 convolution, which halve the size."""

    def __init__(self, into: int, out: int):
        super().__init__()
        self.filter, self.Conv2d_0 = Filter(into), nn.Conv2d(into, out, 3, 2)

    def forward(self, x):
        return self.Conv2d_0(self.filter(x, "same"))


class NIN(nn.Module):
    """A dense layer whose weight has the inputs first."""

    def __init__(self, width: int):
        super().__init__()
        self.W = nn.Parameter(torch.randn(width, width) / width**0.5)
        self.b = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        return torch.matmul(x, self.W) + self.b


class NINAttention(nn.Module):
    """Attention with one head."""

    def __init__(self, width: int):
        super().__init__()
        self.GroupNorm_0 = group_norm(width)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(width) for _ in range(4))

    def forward(self, x):
        h = self.GroupNorm_0(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(h)[:, None] for layer in (self.NIN_0, self.NIN_1, self.NIN_2))
        h = self.NIN_3(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return ROOT_HALF * (x + h.transpose(1, 2).reshape(x.shape))
