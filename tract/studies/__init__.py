"""The paper's ablations and ours: recipes, runs, tables and charts.

In reading order:

    recipes    recipes compared, their baselines, and orderings claimed
    ablations  a study: its runs, and their rows of results
    run_study  train and measure each run once
    spiral     ablations on points, with an exact teacher
    tables     tables of results
    charts     charts of results
    hero       the pictures of the README
"""
