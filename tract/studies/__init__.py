"""The paper's ablations and ours: recipes, runs, tables and charts.

In reading order:

    recipes    compared recipes, their baselines, and claimed orderings
    ablations  the runs of a study, and their rows of results
    run_study  train and measure each run once
    spiral     ablations on points in the plane, with an exact teacher
    tables     tables of results
    charts     charts of results
    hero       the README's pictures
"""
