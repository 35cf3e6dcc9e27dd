"""The index of mechanisms: each with picture, formula, source, cost, and when to use it by what was measured.

docs/index-of-mechanisms.md is written by `python -m regard.bench.readme`; no figure and no verdict in it is typed.
"""
