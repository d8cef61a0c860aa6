"""Held-out pairs and prompts to figures with intervals, and whether a model was trained on them.

May import: training, demo, and what lies below them. On disk it touches the cache of an evaluation.
"""
