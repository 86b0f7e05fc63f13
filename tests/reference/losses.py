"""Every term of the objective by loops over Python floats: rows are lists, nothing is vectorised or normalised early.

Instances are rows (lists of floats), images are ids; `gradient` differentiates by central differences.
"""

import math


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(row):
    length = math.sqrt(dot(row, row))
    return [x / length for x in row]


def cross_entropy(scores, is_positive):
    """-sum_j y_j log softmax_j(scores), y spread evenly over the positives."""
    highest = max(scores)
    log_sum = highest + math.log(sum(math.exp(score - highest) for score in scores))
    positives = [score for score, positive in zip(scores, is_positive, strict=True) if positive]
    return -sum(score - log_sum for score in positives) / len(positives)


def one_direction(queries, gallery, query_ids, gallery_ids, tau):
    losses = []
    for query, query_id in zip(queries, query_ids, strict=True):
        scores = [dot(query, item) / tau for item in gallery]
        losses.append(cross_entropy(scores, [query_id == other for other in gallery_ids]))
    return sum(losses) / len(losses)


def itc(image, text, ids, tau):
    return (one_direction(image, text, ids, ids, tau) + one_direction(text, image, ids, ids, tau)) / 2


def distil(student, teacher, weight, bias, ids, tau):
    """IIC of images, TTC of texts: the student picks the normalised projection of its own teacher feature."""
    projected = []
    for feature in teacher:
        projected.append(unit([dot(row, feature) + offset for row, offset in zip(weight, bias, strict=True)]))
    return one_direction(student, projected, ids, ids, tau)


def nt_xent(rows, group, tau):
    losses = []
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        positive = [group[j] == group[i] for j in others]
        if any(positive):
            losses.append(cross_entropy([dot(row, rows[j]) / tau for j in others], positive))
    return sum(losses) / len(losses)


def relation(rows, columns=None):
    columns = rows if columns is None else columns
    return [[dot(unit(row), unit(column)) for column in columns] for row in rows]


def student_relation(image, text, kind):
    if kind == "image_image":
        return relation(image)
    if kind == "text_text":
        return relation(text)
    if kind == "image_text":
        return relation(image, text)
    assert kind == "averaged"
    return relation([[(a + b) / 2 for a, b in zip(v, t, strict=True)] for v, t in zip(image, text, strict=True)])


def scaled(matrix, tau2):
    return [[entry / tau2 for entry in row] for row in matrix]


def fused(image_relation, text_relation, text_share):
    size = len(image_relation)
    return [
        [text_share * text_relation[i][j] + (1 - text_share) * image_relation[i][j] for j in range(size)]
        for i in range(size)
    ]


def distance(first, second, kind):
    """Mean over the pairs of different instances."""
    gaps = [abs(first[i][j] - second[i][j]) for i in range(len(first)) for j in range(len(first)) if i != j]
    return sum(gap if kind == "mae" else gap**2 for gap in gaps) / len(gaps)


def structure(image, text, image_teacher, text_teacher, text_share, tau2, relation_kind, distance_kind):
    """KD, KDI and KDT by name."""
    image_relation = scaled(relation(image_teacher), tau2)
    text_relation = scaled(relation(text_teacher), tau2)
    target = fused(image_relation, text_relation, text_share)
    student = scaled(student_relation(image, text, relation_kind), tau2)
    return {
        "kd": distance(student, target, distance_kind),
        "kdi": distance(image_relation, target, distance_kind),
        "kdt": distance(text_relation, target, distance_kind),
    }


def gradient(function, rows, step=1e-5):
    """Central differences of a function of a list of rows, entry by entry."""
    result = []
    for i, row in enumerate(rows):
        result.append([])
        for j in range(len(row)):
            values = []
            for sign in (1, -1):
                moved = [list(r) for r in rows]
                moved[i][j] += sign * step
                values.append(function(moved))
            result[i].append((values[0] - values[1]) / (2 * step))
    return result


def derivative(function, value, step=1e-5):
    """Central difference of a function of one number."""
    return (function(value + step) - function(value - step)) / (2 * step)
