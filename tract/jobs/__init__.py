"""Unattended work: notebook execution, sweeps, cost and speed.

In reading order:

    parameters  parameters of notebooks, checked
    execute     execute a notebook with papermill
    sweep       a notebook over a grid of parameters
    cluster     local threads, or the workers of a dask cluster
    quickstart  the main job: teacher, BTD and TRACT on digits
    synthetic   a few training steps on random data
    cost        FLOP, time and memory of a run before it starts
    plan        images, steps and cost of each phase
    bench       speed of a step
"""
