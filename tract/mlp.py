"""A small residual network for points, so that everything can be tried in two dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tract.unet import Embedding


class MLP(nn.Module):
    """`net(x, logsnr, labels)` for points x (B, point_dim): residual layers, embedding added."""

    def __init__(
        self, point_dim: int, *, channels: int = 128, num_blocks: int = 3, num_classes: int = 0
    ):
        super().__init__()
        self.emb = Embedding(channels, channels, num_classes)
        # Coordinates enter as sines as well: thin structures need sharp functions of x.
        self.register_buffer("frequencies", 2.0 ** torch.arange(4), persistent=False)
        self.dense_in = nn.Linear(point_dim * 9, channels)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Linear(channels, channels), nn.Linear(channels, channels)])
            for _ in range(num_blocks)
        )
        self.dense_out = nn.Linear(channels, point_dim)

    def forward(self, x: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        emb = self.emb(logsnr, labels)
        waves = (x[:, :, None] * self.frequencies).flatten(1)
        h = self.dense_in(torch.cat([x, waves.sin(), waves.cos()], 1))
        for first, second in self.blocks:
            h = h + second(F.silu(first(F.silu(h + emb))))
        return self.dense_out(F.silu(h))
