"""The SePO pipeline as a library: one module a stage, and the packages they share."""
