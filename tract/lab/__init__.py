"""What one sees and clicks in a notebook.

In reading order:

    style            colours, markers and words of all figures
    plots            figures of data, schedules, samples and losses
    schedule         the picture of a phase schedule
    line_chart       line charts, as SVG with hover values and as a figure
    show             widgets with a static picture; pieces of HTML, and lab.css
    live             widgets that a timer keeps up to date
    perfect_student  distillation without a network
    fields           fields of the editor, whose text is parsed
    plan_view        what a schedule looks like and costs
    editor           the schedule editor
    explorer         a schedule to drag, and one noise by all models
    view             what a run directory shows of its training
    monitor          train as a job; watch, stop and resume
    run_table        a table of runs that is sorted by its heads
    sampler          samples of runs, made in a thread
    browser          all runs of a folder, live and compared
"""
