"""PyTorch's side of the benchmarks: the networks, and what makes their weights ours.

Every network takes the arguments of the official constructor that matter to its shape, images
``(batch, channels, height, width)`` and step indices ``(batch,)``. Its parameters have the official
names, so that ``convert`` carries them over. Two networks are of diffusers; the others are written
out, as fast as eager PyTorch does them: attention is its fused one.
"""

import copy
import re
from collections.abc import Callable, Sequence

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch_transformers import DiT, UViT
from torch_unets import ADM, NCSNpp

__all__ = ["NETWORKS", "calls", "official_tensors", "perturbed"]

# Names of diffusers' U-Net, made those that the converter knows, applied in this order.
NAMES = (
    (r"^(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1.\2.block.\3"),
    (r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)", r"\1.\2.attn.\3"),
    (r"^down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
    (r"^up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.upsample"),
    (r"^mid_block\.resnets\.0", "mid.block_1"),
    (r"^mid_block\.resnets\.1", "mid.block_2"),
    (r"^mid_block\.attentions\.0", "mid.attn_1"),
    (r"^time_embedding\.linear_1", "temb.dense.0"),
    (r"^time_embedding\.linear_2", "temb.dense.1"),
    (r"^conv_norm_out", "norm_out"),
    (r"time_emb_proj", "temb_proj"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"group_norm", "norm"),
    (r"to_(q|k|v)\.", r"\1."),
    (r"to_out\.0", "proj_out"),
)


def perturbed(network: nn.Module) -> nn.Module:
    """The network with weights none of which is zero, as after some training."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return network


def calls(
    network: nn.Module,
    layout: str,
    x: np.ndarray,
    t: np.ndarray,
    target: np.ndarray,
    learning_rate: float,
) -> tuple[Callable[[], torch.Tensor], Callable[[], float]]:
    """A forward pass, and a step of Adam on the squared error from a target, of a copy each.

    Args:
        network: One of ``NETWORKS``.
        layout: ``'contiguous'`` or ``'channels_last'``, of weights and images.
        x: Images, channels last.
        t: Step indices ``(batch,)``.
        target: Of the output, channels last.
        learning_rate: Of Adam.
    """
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x, target = (
        torch.from_numpy(array).permute(0, 3, 1, 2).contiguous(memory_format=order)
        for array in (x, target)
    )
    t = torch.from_numpy(t)
    frozen, trained = (copy.deepcopy(network).to(memory_format=order) for _ in range(2))
    frozen.eval()
    optimizer = torch.optim.Adam(trained.parameters(), learning_rate, fused=True)

    @torch.inference_mode()
    def forward():
        return frozen(x, t)

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(trained(x, t), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return forward, step


def official_tensors(network: nn.Module) -> dict[str, np.ndarray]:
    """The state dict as ``convert.from_torch`` takes it."""
    tensors = {name: value.numpy() for name, value in network.state_dict().items()}
    if not isinstance(network, DDPM):
        return {name.removeprefix("vae."): value for name, value in tensors.items()}
    tensors = {
        _official(name.removeprefix("unet."), network.levels): value
        for name, value in tensors.items()
    }
    # Dense layers of diffusers' attention are convolutions of 1x1 in the authors' network.
    return {
        name: value[..., None, None] if ".attn" in name and value.ndim == 2 else value
        for name, value in tensors.items()
    }


def _official(name: str, levels: int) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    # Diffusers counts the levels on the way up from the lowest.
    return re.sub(r"^up\.(\d+)", lambda found: f"up.{levels - 1 - int(found[1])}", name)


class DDPM(nn.Module):
    """Diffusers' U-Net with the arguments of ours."""

    def __init__(
        self,
        *,
        image_size: int,
        channels: int,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        num_groups: int = 32,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.levels = len(ch_mult)
        sizes = [image_size >> level for level in range(self.levels)]
        kinds = ["Attn" if size in attn_resolutions else "" for size in sizes]
        self.unet = diffusers.UNet2DModel(
            sample_size=image_size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=num_res_blocks,
            block_out_channels=[ch * mult for mult in ch_mult],
            down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
            attention_head_dim=None,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            norm_eps=1e-6,
            norm_num_groups=num_groups,
            dropout=dropout,
        )

    def forward(self, x, t):
        return self.unet(x, t).sample


class VAE(nn.Module):
    """Diffusers' autoencoder: encodes to the mean, and decodes that."""

    def __init__(self, **arguments):
        super().__init__()
        self.vae = diffusers.AutoencoderKL(**arguments)

    def forward(self, x, t):
        del t
        return self.vae.decode(self.vae.encode(x).latent_dist.mode()).sample


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "ddpm": DDPM,
    "adm": ADM,
    "ncsnpp": NCSNpp,
    "dit": DiT,
    "uvit": UViT,
    "vae": VAE,
}
