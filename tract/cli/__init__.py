"""The `tract` command.

In reading order:

    main    commands, errors as one line
    speed   cost, bench and agreement
    output  tables and JSON lines
"""
