"""Distances between images, and what they are measured on.

In reading order:

    distances           Fréchet distance, KID, precision and recall
    features            feature extractors by name
    classifier          a small classifier for its features
    samples             sampling in batches from fixed noise
    sources             images to measure: data, files, models
    feature_statistics  mean and covariance of features, cached
    fid                 FID and the others with their conditions
    sample_file         samples of a model as PNG files, resumable
"""
