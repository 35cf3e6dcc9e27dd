"""Measuring: each runner prints a table and, last, one line of JSON, and writes a file to `results/`."""
