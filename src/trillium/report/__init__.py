"""Reports made from the files of run folders alone: tables, plots, CSV and one HTML page.

Nothing here imports torch or transformers: a report of a folder copied to a laptop takes seconds.
"""
