"""Model folders in and out: loading, adapters, quantization, cut models, and reference log-probs.

May import: logprobs and what lies below it. On disk it touches model folders, and cached reference log-probs.
"""
