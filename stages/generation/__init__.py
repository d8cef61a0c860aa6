"""Prompts to answers: what is asked, and the engines that answer.

May import: models and what lies below it. On disk it touches nothing but what the models and prompts are read from.
"""
