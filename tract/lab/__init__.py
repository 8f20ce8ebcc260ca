"""What one sees and clicks in a notebook.

In reading order:

    style            colours, markers and words of all figures
    plots            figures of data, schedules, samples and losses
    schedule         the picture of a phase schedule
    curves           fast-updating training curves
    show             widgets with a static picture
    live             whether somebody is there to click; timers; old widgets
    perfect_student  distillation without a network
    fields           fields of the editor, whose text is parsed
    plan_view        what a schedule looks like and costs
    editor           the schedule editor
    explorer         a schedule to drag, and one noise by all models
    view             what a run directory shows of its training
    monitor          train as a job; watch, stop and resume
    svg              line charts with hover values
    run_table        a table of runs that is sorted by its heads
    sampler          samples of runs, made in a thread
    browser          all runs of a folder, live and compared
"""
