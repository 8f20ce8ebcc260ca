"""Data sets by name, image files, and their cache.

In reading order:

    load    data sets by name
    images  list, decode and reduce image files
    cache   decoded image files as one memory-mapped array
"""
