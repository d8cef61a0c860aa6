"""Everything that is looked at: model cards, curves, tables, estimates.

May import: every other room. On disk it touches model cards and pictures in the output folder.
"""
