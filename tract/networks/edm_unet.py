"""EDM's networks: DDPM++ and NCSN++ (Song et al. 2021), and ADM (Dhariwal & Nichol 2021).

As trained by Karras et al. 2022, with the published names of weights. `net(x, logsnr, labels)`
returns a tensor shaped like x; labels are integers (B,), or None for no class.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tract.base.checks import check_choice
from tract.base.compute import Float32Conv2d
from tract.networks.edm_blocks import (
    ADMBlock,
    Block,
    ConvHalve,
    SongBlock,
    double,
    group_norm,
    halve,
)
from tract.networks.timestep import Timestep
from tract.unet import halved_sizes, zero_init

BOX, BINOMIAL = (1, 1), (1, 3, 3, 1)  # filters of `halve` and `double`


class EDMUNet(nn.Module):
    """Common part of the networks: blocks at image_size, image_size / 2, ... and back, with skips.

    channel_mult: width of each resolution in units of channels; attention: sizes in pixels at which
    blocks attend. Raises ValueError if a size does not fit.
    """

    block: type[Block]
    attend_up: bool  # on the way up, whether all blocks of a size attend or only the last

    def __init__(
        self,
        image_size: int,
        image_channels: int,
        *,
        channels: int,
        channel_mult: Sequence[int],
        num_blocks: int,
        attention: Sequence[int] = (),
        num_classes: int = 0,
        dropout: float = 0.0,
        taps: Sequence[int] = BOX,
        residual_input: bool = False,
    ):
        super().__init__()
        self.num_classes = num_classes
        make = partial(self.block, emb_channels=4 * channels, taps=taps, dropout=dropout)
        sizes = halved_sizes(image_size, len(channel_mult))
        stages = [(size, channels * mult) for size, mult in zip(sizes, channel_mult, strict=True)]

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        first = Float32Conv2d(image_channels, channels, 3, padding=1)
        self.enc[f"{image_size}x{image_size}_conv"] = first
        width, input_width, skips = channels, image_channels, [channels]
        for size, stage_width in stages:
            name = f"{size}x{size}"
            if size != image_size:
                self.enc[f"{name}_down"] = make(width, width, resampling=halve)
                skips.append(width)
                if residual_input:
                    self.enc[f"{name}_aux_residual"] = ConvHalve(input_width, width, taps)
                    input_width = width
            for i in range(num_blocks):
                attend = size in attention
                self.enc[f"{name}_block{i}"] = make(width, stage_width, attention=attend)
                width = stage_width
                skips.append(width)
        for size, stage_width in reversed(stages):
            name = f"{size}x{size}"
            if size == sizes[-1]:
                self.dec[f"{name}_in0"] = make(width, width, attention=True)
                self.dec[f"{name}_in1"] = make(width, width)
            else:
                self.dec[f"{name}_up"] = make(width, width, resampling=double)
            for i in range(num_blocks + 1):
                attend = size in attention and (self.attend_up or i == num_blocks)
                width += skips.pop()
                self.dec[f"{name}_block{i}"] = make(width, stage_width, attention=attend)
                width = stage_width
        self.last_channels = width

    def blocks(self) -> list[Block]:
        return [layer for layer in self.modules() if isinstance(layer, Block)]

    def embed(self, c_noise: Tensor, classes: Tensor) -> Tensor:
        """Embedding (B, 4 channels) of c_noise (B,) and one-hot labels (B, num_classes)."""
        raise NotImplementedError

    def head(self, h: Tensor) -> Tensor:
        """Return the image (B, image_channels, H, W) from the last features."""
        raise NotImplementedError

    def forward(self, x: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            classes = x.new_zeros(len(x), self.num_classes)
        elif self.num_classes:
            classes = F.one_hot(labels, self.num_classes).to(x.dtype)
        else:
            raise ValueError(f"this network takes no labels, got labels={labels}")
        # ln(sigma) / 4 for sigma = exp(-logsnr / 2). In float64: NCSN++'s angles reach hundreds.
        emb = self.embed(-logsnr.double() / 8, classes)
        h, residual, skips = x, x, []
        for layer in self.enc.values():
            if isinstance(layer, ConvHalve):
                h = skips[-1] = residual = (h + layer(residual)) * 0.5**0.5
            else:
                h = layer(h, emb) if isinstance(layer, Block) else layer(h)
                skips.append(h)
        for layer in self.dec.values():
            if isinstance(layer, Block):
                if layer.norm0.num_channels != h.shape[1]:  # in0, in1 and up take no skip
                    h = torch.cat([h, skips.pop()], 1)
                h = layer(h, emb)
        return self.head(h)


class GeometricAngles(nn.Module):
    """Angles (B, count) of a noise level (B,), at frequencies from 1 to (nearly) 1 / 10,000."""

    def __init__(self, count: int, endpoint: bool):
        super().__init__()
        self.count, self.last = count, count - endpoint

    def forward(self, c_noise: Tensor) -> Tensor:
        exponents = torch.arange(self.count, device=c_noise.device, dtype=c_noise.dtype) / self.last
        return c_noise[:, None] * 10_000.0**-exponents


class FourierAngles(nn.Module):
    """Angles (B, count) of a noise level (B,), at fixed random frequencies."""

    def __init__(self, count: int):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(count))

    def forward(self, c_noise: Tensor) -> Tensor:
        return 2 * torch.pi * c_noise[:, None] * self.freqs


class SongUNet(EDMUNet):
    """DDPM++ or NCSN++: variant is "ddpm++" or "ncsn++"; options are those of EDMUNet.

    NCSN++ embeds the level at random frequencies, filters when it resamples, and adds the
    downsampled input on its way down. augment_dim: the number of values, 9 or 0, that describe an
    image's augmentation in EDM's training; there is none here, so they are 0.
    """

    block = SongBlock
    attend_up = False

    def __init__(
        self,
        image_size: int,
        image_channels: int,
        *,
        variant: str,
        channels: int,
        augment_dim: int = 0,
        **options,
    ):
        check_choice("variant", variant, ("ddpm++", "ncsn++"))
        ncsn = variant == "ncsn++"
        options |= {"taps": BINOMIAL, "residual_input": True} if ncsn else {}
        super().__init__(image_size, image_channels, channels=channels, **options)
        waves, emb_channels = 2 * channels if ncsn else channels, 4 * channels
        self.map_noise = FourierAngles(channels) if ncsn else GeometricAngles(channels // 2, True)
        self.map_label = nn.Linear(self.num_classes, waves) if self.num_classes else None
        self.map_augment = nn.Linear(augment_dim, waves, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(waves, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        name, width = f"{image_size}x{image_size}", self.last_channels
        self.dec[f"{name}_aux_norm"] = group_norm(width, self.block.eps)
        self.dec[f"{name}_aux_conv"] = Float32Conv2d(width, image_channels, 3, padding=1)
        self.apply(xavier)
        xavier(self.dec[f"{name}_aux_conv"], gain=1e-5)
        for block in self.blocks():
            xavier(block.conv1, gain=1e-5)
            if block.num_heads:
                xavier(block.qkv, gain=0.2**0.5)
                xavier(block.proj, gain=1e-5)

    def embed(self, c_noise: Tensor, classes: Tensor) -> Tensor:
        angles = self.map_noise(c_noise)
        emb = torch.cat([angles.sin(), angles.cos()], 1).to(classes.dtype)
        if self.map_label is not None:
            emb = emb + self.map_label(classes * self.num_classes**0.5)
        if self.map_augment is not None:  # its gradient is then 0, not None: Adam keeps its state
            emb = emb + self.map_augment(emb.new_zeros(len(emb), self.map_augment.in_features))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def head(self, h: Tensor) -> Tensor:
        *_, norm, conv = self.dec.values()
        return conv(F.silu(norm(h)))


class ADMUNet(EDMUNet):
    """ADM; options are those of EDMUNet.

    It is told the level as time_scale ln(sigma) / 4; or, with a noise_schedule, by its number.
    """

    block = ADMBlock
    attend_up = True

    def __init__(
        self,
        image_size: int,
        image_channels: int,
        *,
        channels: int,
        time_scale: float = 1.0,
        noise_schedule: str = "",
        num_steps: int = 1000,
        **options,
    ):
        super().__init__(image_size, image_channels, channels=channels, **options)
        emb_channels = 4 * channels
        self.time_scale = time_scale
        self.timestep = Timestep(noise_schedule, num_steps) if noise_schedule else None
        self.map_noise = GeometricAngles(channels // 2, False)
        self.map_layer0 = nn.Linear(channels, emb_channels)
        self.map_layer1 = nn.Linear(emb_channels, emb_channels)
        self.map_label = None
        if self.num_classes:
            self.map_label = nn.Linear(self.num_classes, emb_channels, bias=False)
            nn.init.normal_(self.map_label.weight)
        self.out_norm = group_norm(self.last_channels, self.block.eps)
        self.out_conv = zero_init(Float32Conv2d(self.last_channels, image_channels, 3, padding=1))
        for block in self.blocks():
            zero_init(block.conv1)
            if block.num_heads:
                zero_init(block.proj)

    def embed(self, c_noise: Tensor, classes: Tensor) -> Tensor:
        numbered = self.timestep is not None
        time = self.timestep(-8 * c_noise).double() if numbered else self.time_scale * c_noise
        angles = self.map_noise(time)
        waves = torch.cat([angles.cos(), angles.sin()], 1).to(classes.dtype)
        emb = self.map_layer1(F.silu(self.map_layer0(waves)))
        if self.map_label is not None:
            emb = emb + self.map_label(classes)
        return F.silu(emb)

    def head(self, h: Tensor) -> Tensor:
        return self.out_conv(F.silu(self.out_norm(h)))


def xavier(layer: nn.Module, gain: float = 1.0) -> None:
    """Initialise a layer of DDPM++ or NCSN++ as EDM does, if it has weights that mix channels."""
    if isinstance(layer, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(layer.weight, gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
