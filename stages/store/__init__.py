"""The files by which stages meet: manifests, shards, storage, locks.

May import: configs. On disk it touches the folders that stages write and read.
"""
