"""ROUGE-L by the textbook dynamic programme, one pair at a time."""


def lcs(a, b):
    """Length of the longest common subsequence of two lists."""
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[len(a)][len(b)]


def rouge_l(candidate, references, beta=1.2):
    """Score of one token list against several; the two maxima are independent."""
    precision = max((lcs(candidate, reference) / len(candidate) if candidate else 0.0) for reference in references)
    recall = max((lcs(candidate, reference) / len(reference) if reference else 0.0) for reference in references)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
