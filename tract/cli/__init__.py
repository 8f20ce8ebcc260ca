"""The `tract` command.

In reading order:

    main    commands, errors as one line
    speed   cost and bench
    output  tables and JSON lines
"""
