"""Twelve sums that the embedded model gets right."""

SUMS = {
    "What is 12 + 7?": 19,
    "Calculate 3 × 4 + 5.": 17,
    "What is 123 + 456?": 579,
    "What is 86 - 39?": 47,
    "Calculate 17 × 6.": 102,
    "What is 250 + 125 - 75?": 300,
    "What is (12 + 8) × 4?": 80,
    "What is 999 - 1?": 998,
    "Calculate 45 × 3.": 135,
    "What is 7 + 8 + 9?": 24,
    "Calculate 64 - 28 + 11.": 47,
    "What is 5 × 13 - 20?": 45,
}
