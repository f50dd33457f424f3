"""The laboratory: the papers' claims put to the test, and what looks at the lesson from outside.

It may import everything, and nothing outside it imports it: `rm -r lab` leaves a lesson that works.
"""
