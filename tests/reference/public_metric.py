"""The single-modal and mixed NDCG of the TIP 2024 paper's public code, from its definitions, one entry at a time.

Captions are five an image, in the order of the images. ``rouge[c][j]`` is the relevance of caption c to image j.
"""

import math


def ndcg(scores, relevance, k):
    """0 for a query with nothing relevant; the lower index first among equal scores."""
    ranking = sorted(range(len(scores)), key=lambda item: (-scores[item], item))[:k]
    ideal = sorted(relevance, reverse=True)[:k]
    dcg = sum(relevance[item] / math.log2(place + 2) for place, item in enumerate(ranking))
    best = sum(gain / math.log2(place + 2) for place, gain in enumerate(ideal))
    return dcg / best if best > 0 else 0.0


def mean(scores, relevance, k):
    return 100 * sum(ndcg(*query, k) for query in zip(scores, relevance, strict=True)) / len(scores)


def i2i(image_cosines, rouge, k):
    n = len(image_cosines)
    scores = [[0.0 if i == j else image_cosines[i][j] for j in range(n)] for i in range(n)]
    relevance = [[0.0 if i == j else rouge[5 * i][j] for j in range(n)] for i in range(n)]
    return mean(scores, relevance, k)


def t2t(text_cosines, rouge, k):
    total = len(text_cosines)
    scores = [[0.0 if c == 5 * i else text_cosines[5 * i][c] for c in range(total)] for i in range(total // 5)]
    relevance = [[0.0 if c == 5 * i else rouge[c][i] for c in range(total)] for i in range(total // 5)]
    return mean(scores, relevance, k)


def i2it(image_cosines, i2t_scores, rouge, k):
    n = len(image_cosines)
    scores = [list(image_cosines[i]) + list(i2t_scores[i]) for i in range(n)]
    relevance = [[rouge[5 * i][j] for j in range(n)] + [rouge[c][i] for c in range(5 * n)] for i in range(n)]
    return mean(scores, relevance, k)


def t2it(text_cosines, t2i_scores, rouge, k):
    n = len(text_cosines) // 5
    # The block of the images is transposed: column j is how the first caption of image j scores image i.
    scores = [list(text_cosines[5 * i]) + [t2i_scores[5 * j][i] for j in range(n)] for i in range(n)]
    relevance = [[rouge[c][i] for c in range(5 * n)] + [rouge[5 * j][i] for j in range(n)] for i in range(n)]
    return mean(scores, relevance, k)
