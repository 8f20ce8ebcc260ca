"""Building blocks of EDM's networks: filtered resampling, and residual blocks with attention.

Modules have the published names, so that published weights fit without renaming.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tract.base.compute import Recomputable
from tract.unet import pixels

Resampling = Callable[[Tensor, Tensor], Tensor]  # `halve` or `double`


def low_pass(taps: Sequence[int]) -> Tensor:
    """Return the filter (1, 1, k, k) with these taps in both directions and sum 1."""
    row = torch.tensor(taps, dtype=torch.float32)
    return (row[:, None] * row / row.sum() ** 2)[None, None]


def halve(x: Tensor, low_pass: Tensor, padded: bool = True) -> Tensor:
    """Filter x (B, C, H, W) and keep every second pixel."""
    channels, padding = x.shape[1], (low_pass.shape[-1] - 1) // 2 if padded else 0
    kernel = low_pass.expand(channels, -1, -1, -1)
    return F.conv2d(x, kernel, stride=2, padding=padding, groups=channels)


def double(x: Tensor, low_pass: Tensor) -> Tensor:
    """Insert zeros between the pixels of x (B, C, H, W) and filter with gain 4."""
    channels, padding = x.shape[1], (low_pass.shape[-1] - 1) // 2
    kernel = 4 * low_pass.expand(channels, -1, -1, -1)
    return F.conv_transpose2d(x, kernel, stride=2, padding=padding, groups=channels)


class Resample(nn.Module):
    """Halves or doubles height and width."""

    def __init__(self, resampling: Resampling, taps: Sequence[int]):
        super().__init__()
        self.resampling = resampling
        self.register_buffer("resample_filter", low_pass(taps))

    def forward(self, x: Tensor) -> Tensor:
        return self.resampling(x, self.resample_filter)


class ResampleConv(nn.Conv2d):
    """Halves or doubles height and width, then convolves."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, resampling: Resampling, taps: Sequence[int]
    ):
        super().__init__(c_in, c_out, kernel, padding=kernel // 2)
        self.resampling = resampling
        self.register_buffer("resample_filter", low_pass(taps))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.resampling(x, self.resample_filter))


class ConvHalve(nn.Conv2d):
    """Convolves, then halves: as one filter, so that only the input is padded."""

    def __init__(self, c_in: int, c_out: int, taps: Sequence[int]):
        super().__init__(c_in, c_out, 3, padding=1 + (len(taps) - 1) // 2)
        self.register_buffer("resample_filter", low_pass(taps))

    def forward(self, x: Tensor) -> Tensor:
        return halve(super().forward(x), self.resample_filter, padded=False)


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """Return a norm with at most 32 groups of 4 channels or more."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class Block(Recomputable):
    """Two convolutions conditioned on the embedding, then optional attention over all pixels.

    Subclasses define the differences between the networks. Raises ValueError if there are fewer
    channels than one attention head has.
    """

    eps: float
    skip_scale: float  # of each residual sum
    scale_shift: bool  # the embedding scales and shifts, or is added before the norm
    conv_skip: bool  # resampling blocks have a convolution in the skip too
    head_channels: int | None  # None for one head

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb_channels: int,
        *,
        taps: Sequence[int],
        dropout: float,
        resampling: Resampling | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.norm0 = group_norm(c_in, self.eps)
        self.affine = nn.Linear(emb_channels, (1 + self.scale_shift) * c_out)
        self.norm1 = group_norm(c_out, self.eps)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if resampling is None:
            self.conv0 = nn.Conv2d(c_in, c_out, 3, padding=1)
            self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        else:
            self.conv0 = ResampleConv(c_in, c_out, 3, resampling, taps)
            if self.conv_skip:
                self.skip = ResampleConv(c_in, c_out, 1, resampling, taps)
            else:
                self.skip = Resample(resampling, taps)
        self.num_heads = 0
        if attention:
            self.num_heads = c_out // (self.head_channels or c_out)
            if self.num_heads == 0:
                raise ValueError(
                    f"attention is at a size with {c_out} channels, less than one head of "
                    f"{self.head_channels}: use more channels, or attention at smaller sizes"
                )
            self.norm2 = group_norm(c_out, self.eps)
            self.qkv = nn.Conv2d(c_out, 3 * c_out, 1)
            self.proj = nn.Conv2d(c_out, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        emb = self.affine(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = emb.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + emb)
        h = self.conv1(self.dropout(F.silu(h)))
        x = (self.skip(x) + h) * self.skip_scale
        return (x + self.attend(x)) * self.skip_scale if self.num_heads else x

    def attend(self, x: Tensor) -> Tensor:
        """Return the attention's contribution to x (B, C, H, W)."""
        # Channels are ordered by head, then channel within the head, then q, k, v.
        qkv = pixels(self.qkv(self.norm2(x))).unflatten(2, (self.num_heads, -1, 3))
        qkv = qkv.permute(4, 0, 2, 1, 3).contiguous()
        q, k, v = qkv  # each (B, heads, H W, channels of the head)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(h.flatten(2).transpose(1, 2).reshape(x.shape))


class SongBlock(Block):
    """The block of DDPM++ and NCSN++, whose sums preserve variance; Song et al. 2021."""

    eps = 1e-6
    skip_scale = 0.5**0.5
    scale_shift = False
    conv_skip = True
    head_channels = None


class ADMBlock(Block):
    """The block of ADM; Dhariwal & Nichol 2021."""

    eps = 1e-5
    skip_scale = 1.0
    scale_shift = True
    conv_skip = False
    head_channels = 64
