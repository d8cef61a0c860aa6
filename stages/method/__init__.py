"""The science as pure functions of tensors and arrays: objectives, rules of selection, rewards, statistics.

May import: configs. On disk it touches nothing.
"""
