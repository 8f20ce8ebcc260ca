"""Readers of published teachers.

In reading order:

    load            load_teacher: detect the format and read it
    fill            fill a network with the tensors of a file
    containers      tensors of flax and torch files, read as data
    pickles         EDM's pickles, read as data
    paper_unet      description and layer names of a U-Net from other projects' tensors
    edm             EDM's networks
    google          Google's networks of progressive distillation
    apple           networks of the paper's authors
    openai          networks of guided-diffusion and consistency_models
    diffusers_read  pipelines of diffusers
"""
