"""The objectives of `sepo train-policy`, one module each; see `stages.registry`."""
