"""Pairs of text to token ids: chat templates, encoding, and the cache of ids.

May import: data and what lies below it. On disk it touches the cache of ids.
"""
