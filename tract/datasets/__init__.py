"""Data sets by name, image files, and their cache.

In reading order:

    load    data sets by name
    images  list, decode and resize image files
    labels  labels from class folders, or from EDM's dataset.json
    arrays  images and statistics in .npz files
    cache   decoded image files as one memory-mapped array
"""
