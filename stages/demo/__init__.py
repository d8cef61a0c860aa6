"""The planted language of the demo: its text, its untrained model, its best possible gain.

May import: models and what lies below it. On disk it touches nothing.
"""
