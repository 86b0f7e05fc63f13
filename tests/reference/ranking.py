"""Ranks by sorting one row at a time and walking down the list."""


def rank_of_best_positive(scores, query_ids, gallery_ids, ties="index"):
    """0-based ranks of the best positives; lists in, list out."""
    ranks = []
    for row, query_id in zip(scores, query_ids, strict=True):
        positive = [gallery_id == query_id for gallery_id in gallery_ids]
        if ties == "pessimistic":  # among equals the positives come last, ...
            ranking = sorted(range(len(row)), key=lambda j: (-row[j], positive[j]))
        else:  # ... or the lower index comes first
            ranking = sorted(range(len(row)), key=lambda j: (-row[j], j))
        ahead = 0
        for item in ranking:
            if positive[item]:
                break
            ahead += 1
        ranks.append(ahead)
    return ranks


def is_tied(scores, query_ids, gallery_ids):
    """Whether the best positive's score also occurs among the non-positives."""
    tied = []
    for row, query_id in zip(scores, query_ids, strict=True):
        best = max(score for score, item in zip(row, gallery_ids, strict=True) if item == query_id)
        tied.append(any(score == best for score, item in zip(row, gallery_ids, strict=True) if item != query_id))
    return tied
