"""The public benchmarks: their prompts, their files as the official tools read them, and what those tools write.

May import: generation and what lies below it. On disk it touches files of those tools.
"""
