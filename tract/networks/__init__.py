"""Further networks, networks by name, and weight files.

In reading order:

    mlp             a residual network for points
    timestep        timestep numbers of noise levels
    edm_blocks      building blocks of EDM's networks
    edm_unet        EDM's networks: DDPM++, NCSN++ and ADM
    diffusers_unet  the network of diffusers' pixel-space pipelines
    named           networks by name
    build           networks by description
    cards           the card of a model: its fields, checked once
    weights         weights and training states as safetensors files
"""
