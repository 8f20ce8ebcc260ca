"""Support code that knows nothing of diffusion.

In reading order:

    checks      argument checks with uniform messages
    files       atomic writes and folder locks
    yaml_files  YAML, with numbers as Python writes them
    interrupts  SIGINT and SIGTERM deferred to the end of a step
    progress    progress bars, all alike
    provenance  versions, device, commit and time of a result
    compute     device, threads, precision, memory format, compilation
    parallel    one run on several processes
"""
