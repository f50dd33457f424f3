"""Commands that look at models and runs: walk, doctor, fill-mask, bench, table.

`claims/` may import it, and nothing that trains does; it may import all but `claims/`.
"""
