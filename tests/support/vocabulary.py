"""A vocabulary of ten tokens, for the rules of a chain of action-thought."""

CONTINUE, REFLECT, EXPLORE, END, BOXED, NEWLINE, THE, WORD = range(1, 9)
SIZE = 10
TOKENS = {
    "reflect": REFLECT,
    "explore": EXPLORE,
    "actions": [CONTINUE, REFLECT, EXPLORE],
    "end": [END],
    "marks": [BOXED],
    "openings": [[NEWLINE, THE]],
    "answer": [NEWLINE, THE, BOXED],
}
"""What a request's limits need to know of it."""
