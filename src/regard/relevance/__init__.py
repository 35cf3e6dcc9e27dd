"""Relevance realization: a budget of tokens for each region of an image, decided by the question.

Measure three ways (ways.py), balance three tensions (tensions.py), realize relevance: regions of variable resolution
under one exact budget (budget.py, quadtree.py, realizer.py, tiles.py), again after each look (gaze.py), and learn it
(learning.py). docs/relevance.md defines the words. Inspired by the theory of relevance realization (Vervaeke, Lillicrap
and Richards 2012), and no more than inspired.
"""
