"""The one loop: steps, micro-batches, checkpoints, optimizers, LoRA, metrics.

May import: models and what lies below it. On disk it touches checkpoints, metrics and trackers in the output folder.
"""
