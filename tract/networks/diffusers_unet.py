"""The network of diffusers' pixel-space pipelines, which takes the level as a timestep number.

`net(x, logsnr, labels)` wraps its UNet2DModel; levels between timesteps are interpolated.
"""

from torch import Tensor, nn

from tract.base.compute import Float32Conv2d
from tract.networks.timestep import Timestep


class DiffusersUNet(nn.Module):
    """diffusers' UNet2DModel for the noisy levels of a process, numbered 0 .. num_steps - 1.

    unet: arguments of UNet2DModel except sizes and classes, which are given as for UNet.
    """

    def __init__(
        self,
        image_size: int,
        image_channels: int,
        *,
        noise_schedule: str,
        num_steps: int,
        num_classes: int = 0,
        unet: dict,
    ):
        super().__init__()
        from diffusers import UNet2DModel  # takes seconds

        self.unet = UNet2DModel(
            sample_size=image_size,
            in_channels=image_channels,
            out_channels=image_channels,
            num_class_embeds=num_classes or None,
            **unet,
        )
        for conv in (self.unet.conv_in, self.unet.conv_out):
            conv.__class__ = Float32Conv2d
        self.timestep = Timestep(noise_schedule, num_steps)

    @property
    def recompute(self) -> bool:
        """Whether blocks are computed again in the backward pass, see `compute.Recomputable`."""
        return self.unet.is_gradient_checkpointing

    @recompute.setter
    def recompute(self, wanted: bool) -> None:
        if wanted:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()

    def forward(self, x: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.unet(x, self.timestep(logsnr), class_labels=labels).sample
