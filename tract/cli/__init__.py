"""The `tract` command.

    main    commands, errors as one line
    speed   cost, bench and agreement
    output  tables and JSON lines
"""
