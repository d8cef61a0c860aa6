"""Token ids to log-probs, divergences and samples.

Packing, attention, the head, and fast paths that are compared with the plain one.

May import: tokens, devices, method and what lies below them. On disk it touches nothing.
"""
