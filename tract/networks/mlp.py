"""A small residual network for points, for experiments in two dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tract.base.compute import Recomputable
from tract.unet import Embedding


class MLP(nn.Module):
    """`net(x, logsnr, labels)` for points x (B, point_dim), returns (B, point_dim)."""

    def __init__(
        self, point_dim: int, *, channels: int = 128, num_blocks: int = 3, num_classes: int = 0
    ):
        super().__init__()
        self.emb = Embedding(channels, channels, num_classes)
        # Coordinates are also input as waves: thin structures need sharp functions of x.
        self.register_buffer("frequencies", 2.0 ** torch.arange(4), persistent=False)
        waves = 2 * len(self.frequencies)  # a sine and a cosine each
        self.dense_in = nn.Linear(point_dim * (1 + waves), channels)
        self.blocks = nn.ModuleList(MLPBlock(channels) for _ in range(num_blocks))
        self.dense_out = nn.Linear(channels, point_dim)

    def forward(self, x: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.emb(logsnr, labels)
        waves = (x[:, :, None] * self.frequencies).flatten(1)
        h = self.dense_in(torch.cat([x, waves.sin(), waves.cos()], 1))  # (B, channels)
        for block in self.blocks:
            h = block(h, emb)
        return self.dense_out(F.silu(h))


class MLPBlock(Recomputable):
    """Two linear layers around a scale and shift by the embedding, as in the U-Net's ResBlock."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.dense1 = nn.Linear(channels, channels)
        self.emb_proj = nn.Linear(channels, 2 * channels)
        self.norm2 = nn.LayerNorm(channels)
        self.dense2 = nn.Linear(channels, channels)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.emb_proj(emb).chunk(2, dim=1)
        update = self.norm2(self.dense1(F.silu(self.norm1(h))))
        return h + self.dense2(F.silu(update * (1 + scale) + shift))
