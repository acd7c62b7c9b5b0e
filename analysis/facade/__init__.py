"""The commands as functions, which ``import transom`` hands out.

A function takes what its command takes, as Python values, and returns what it prints: a
`transom.answer.Table` or a `Report`.  What a function needs is imported when it is called.
"""
