"""The machine: processes, memory, precision, optional libraries.

May import: store and what lies below it. On disk it touches nothing.
"""
