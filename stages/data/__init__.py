"""Files and hub data sets to pairs of text.

May import: configs and store. On disk it touches the data sets it is given, which it only reads.
"""
