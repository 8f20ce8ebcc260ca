"""The `tract` command.

In reading order:

    main       the parser, errors as one line
    notebooks  run, sweep, quickstart, branch
    measuring  fid, sample, classifier, publish
    speed      cost and bench
    models     models, teacher, export
    output     tables, JSON lines and shared options
"""
