"""The paper's ablations and ours: recipes, runs, tables and charts.

In reading order:

    ablations  recipes compared and orderings claimed
    run_study  train and measure each run once
    spiral     ablations on points, with an exact teacher
    tables     tables of results
    charts     charts of results
    hero       the pictures of the README
"""
