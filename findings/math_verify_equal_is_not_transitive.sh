#!/usr/bin/env bash
# Math-Verify 0.9.0 calls two answers equal to a third that it does not call equal to each other. A vote then depends on its order.
#
# Versions: math-verify 0.9.0, latex2sympy2_extended 1.11.0, sympy 1.14.0, antlr4-python3-runtime 4.13.2.
#
# Expected: `verify(gold, target)` says whether two answers mean the same. Its documentation warns that some comparisons depend on
#   which answer is the gold one. Where it says yes in both orders, that is equality: answers that equal a third equal each other.
# Instead: a percentage equals the number before its sign, and also a hundredth of that. A number equals an equation that assigns it
#   to a variable, whichever variable it is. So 50 and 0.5 both equal 50\%, and x=3 and y=3 both equal 3, in both orders.
# Hurt: programs that group answers with `verify`: majority votes, maj@k, rewards for agreement, removal of duplicates. The same
#   seven answers below elect 50, 50\% or 0.5, depending on which is read first. Grading against one gold answer is not affected.
#
# Seen:
#   50 equals 50\%: True; 50\% equals 0.5: True; 50 equals 0.5: False
#   x=3 equals 3: True; 3 equals y=3: True; x=3 equals y=3: False
#   50 read first: 50 is elected with 4 of 7 votes
#   50\% read first: 50\% is elected with 7 of 7 votes
#   0.5 read first: 0.5 is elected with 4 of 7 votes
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0 antlr4-python3-runtime==4.13.2

cat >"$folder/finding.py" <<'PYTHON'
import sys
from collections import Counter

from math_verify import parse, verify

CHAINS = (("50", r"50\%", "0.5"), ("x=3", "3", "y=3"))
ANSWERS = ("50", "50", "50", r"50\%", "0.5", "0.5", "0.5")


def equal(one, other):
    """Return whether two answers are equal, whichever of them is the gold one."""
    one, other = (parse(rf"\boxed{{{answer}}}") for answer in (one, other))
    return verify(one, other) and verify(other, one)


def elect(answers):
    """Return the answer with the most votes; an answer counts for the first one before it that equals it."""
    votes = Counter()
    for answer in answers:
        votes[next((known for known in votes if equal(known, answer)), answer)] += 1
    return votes.most_common(1)[0]


same = True
for one, middle, other in CHAINS:
    found = equal(one, middle), equal(middle, other), equal(one, other)
    same = same and found == (True, True, False)
    print(f"{one} equals {middle}: {found[0]}; {middle} equals {other}: {found[1]}; {one} equals {other}: {found[2]}")
for first, votes in (("50", 4), (r"50\%", 7), ("0.5", 4)):
    elected = elect(sorted(ANSWERS, key=lambda answer: answer != first))
    same = same and elected == (first, votes)
    print(f"{first} read first: {elected[0]} is elected with {elected[1]} of {len(ANSWERS)} votes")
sys.exit(0 if same else "different from what was seen")
PYTHON
"$folder/venv/bin/python" "$folder/finding.py"
