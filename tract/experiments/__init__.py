"""Run directories: settings, history, checkpoints, results, several processes.

In reading order:

    run          train with history and checkpoints, resume
    checkpoints  states to resume from
    names        names of runs, and their settings from a card
    card         the settings of a run, compared on resume
    history      one line a step, and TensorBoard events
    status       who trains a run, how far it is, a request to stop
    results      the table of measured numbers
    rows         rows of that table
    experiment   data, levels, teacher and students of one folder
    measure      samples of runs and their distances
    catalogue    find and summarise the runs in a folder
    export       students as files and diffusers pipelines
    team         start further processes
    worker       what a further process does
    preview      samples, errors and distances of a run under way
    job          a training as a process of its own
"""
