"""The public interface: what `import trillium` offers, and what the command line is made of.

Imports the rooms below it; of these above it, the command line alone imports it.
"""
