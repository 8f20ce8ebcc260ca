"""Support code that is independent of diffusion.

In reading order:

    checks      argument checks with uniform messages
    files       atomic writes and folder locks
    yaml_files  YAML with numbers as in Python
    interrupts  SIGINT and SIGTERM deferred to the end of a step
    progress    progress bars in one style
    provenance  versions, device, commit and time of a result
    compute     device, threads, precision, memory format, compilation
    parallel    one run in several processes
"""
