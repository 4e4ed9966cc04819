"""Reports made from the files of run folders alone: tables, plots, CSV and one HTML page.

Imports the ground alone, and neither torch nor transformers: a report of a folder that was copied to a
laptop takes seconds.
"""
