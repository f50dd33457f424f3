"""The comparison: the papers' claims, their arms, the runs, the verdicts and the report.

Only `python -m minibert` may import it; it may import all other rooms, `tools/` for what it
shows: latencies by bench, words by fill-mask, the family by table.
"""
