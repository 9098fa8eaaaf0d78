"""
The command `hybrid`: one file a verb, on top of the package. No checkpoint carries it.

Nothing slow is imported at the top of these files: help comes at once, and a verb says what it loads before it does.
"""
