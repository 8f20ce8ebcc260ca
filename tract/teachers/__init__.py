"""Readers of published teachers, one file for each format."""
