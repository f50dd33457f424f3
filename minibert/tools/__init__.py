"""Commands that look at models and runs: walk, fill-mask, table.

Nothing that trains imports it.
"""
