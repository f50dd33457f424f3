"""Commands that look at models and runs: walk, fill-mask, bench, info and table.

`claims/` may import it, and nothing that trains does; it may import all but `claims/`.
"""
