"""Every term of the method by loops over Python floats: rows are lists, nothing is vectorised or normalised early.

Instances are rows (lists of floats), images are ids; `gradient` differentiates by central differences.
"""

import math

from scipy.stats import wasserstein_distance


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(row):
    length = math.sqrt(dot(row, row))
    return [x / length for x in row]


# --- Instances.


def softmax(scores):
    highest = max(scores)
    exponentials = [math.exp(score - highest) for score in scores]
    return [value / sum(exponentials) for value in exponentials]


def cross_entropy(scores, is_positive):
    """-sum_j y_j log softmax_j(scores), y spread evenly over the positives."""
    highest = max(scores)
    log_sum = highest + math.log(sum(math.exp(score - highest) for score in scores))
    positives = [score for score, positive in zip(scores, is_positive, strict=True) if positive]
    return -sum(score - log_sum for score in positives) / len(positives)


def same(first_id, second_id):
    """Whether two pairs are positives: the same image, or, of lists, the same at any place."""
    if isinstance(first_id, list):
        return any(first == second for first, second in zip(first_id, second_id, strict=True))
    return first_id == second_id


def one_direction(queries, gallery, query_ids, gallery_ids, tau):
    losses = []
    for query, query_id in zip(queries, query_ids, strict=True):
        scores = [dot(query, item) / tau for item in gallery]
        losses.append(cross_entropy(scores, [same(query_id, other) for other in gallery_ids]))
    return mean(losses)


def itc(image, text, ids, tau):
    return (one_direction(image, text, ids, ids, tau) + one_direction(text, image, ids, ids, tau)) / 2


def linear(row, weight, bias):
    return [dot(entries, row) + offset for entries, offset in zip(weight, bias, strict=True)]


def distil(student, teacher, weight, bias, ids, tau):
    """IIC of images, TTC of texts: the student picks the normalised projection of its own teacher feature."""
    return one_direction(student, [unit(linear(feature, weight, bias)) for feature in teacher], ids, ids, tau)


def nt_xent(rows, group, tau):
    losses = []
    for i, row in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        positive = [group[j] == group[i] for j in others]
        if any(positive):
            losses.append(cross_entropy([dot(row, rows[j]) / tau for j in others], positive))
    return mean(losses)


def matching(logits, labels):
    """ITM: the mean over labelled pairs of -log softmax_label(logits)."""
    return mean(-math.log(softmax(pair)[label]) for pair, label in zip(logits, labels, strict=True) if label in (0, 1))


def negative_weights(queries, gallery, query_ids, gallery_ids, tau):
    """softmax over the whole gallery plus 1e-5, then 0 for positives."""
    result = []
    for query, query_id in zip(queries, query_ids, strict=True):
        chances = softmax([dot(query, item) / tau for item in gallery])
        result.append(
            [0.0 if same(query_id, other) else p + 1e-5 for p, other in zip(chances, gallery_ids, strict=True)]
        )
    return result


# --- Structure.


def relation(rows, columns=None):
    columns = rows if columns is None else columns
    return [[dot(unit(row), unit(column)) for column in columns] for row in rows]


def euclidean(rows, columns):
    """Distances over their mean between different instances."""
    lengths = [[math.dist(row, column) for column in columns] for row in rows]
    return scaled(lengths, mean(entry for row in off_diagonal(lengths) for entry in row))


def angles(rows, columns):
    """Entry (j, i, k): cosine at column j between rows i and k; 0 unless all three are different."""
    size = range(len(rows))
    between = {(j, i): [a - b for a, b in zip(rows[i], columns[j], strict=True)] for j in size for i in size}
    edge = {(j, i): unit(vector) for (j, i), vector in between.items() if i != j}
    return [[[dot(edge[j, i], edge[j, k]) if len({i, j, k}) == 3 else 0.0 for k in size] for i in size] for j in size]


def relations(rows, columns, distance_kind):
    columns = rows if columns is None else columns
    if distance_kind == "rkd_distance":
        return euclidean(rows, columns)
    if distance_kind == "rkd_angle":
        return angles(rows, columns)
    return relation(rows, columns)


def student_instances(image, text, fused_tokens, kind):
    averaged = [[(a + b) / 2 for a, b in zip(v, t, strict=True)] for v, t in zip(image, text, strict=True)]
    return {
        "fused": (fused_tokens, fused_tokens),
        "image_image": (image, image),
        "text_text": (text, text),
        "image_text": (image, text),
        "averaged": (averaged, averaged),
    }[kind]


def scaled(matrix, tau2):
    return [scaled(entry, tau2) if isinstance(entry, list) else entry / tau2 for entry in matrix]


def fused(image_relation, text_relation, text_share):
    if isinstance(image_relation, list):
        return [fused(*entries, text_share) for entries in zip(image_relation, text_relation, strict=True)]
    return text_share * text_relation + (1 - text_share) * image_relation


def off_diagonal(matrix):
    return [[entry for j, entry in enumerate(row) if j != i] for i, row in enumerate(matrix)]


def different(matrix, kind):
    """The entries over different instances, one after another."""
    size = range(len(matrix))
    if kind == "rkd_angle":
        return [matrix[j][i][k] for j in size for i in size for k in size if len({i, j, k}) == 3]
    return [entry for row in off_diagonal(matrix) for entry in row]


def distance(first, second, kind, weights=None):
    """Between relations of different instances; the second is the target."""
    pairs = list(zip(different(first, kind), different(second, kind), strict=True))
    rows = list(zip(off_diagonal(first), off_diagonal(second), strict=True))
    if kind == "mae":
        return mean(abs(a - b) for a, b in pairs)
    if kind == "mse":
        return mean((a - b) ** 2 for a, b in pairs)
    if kind in ("rkd_distance", "rkd_angle"):
        gaps = [abs(a - b) for a, b in pairs]
        return mean(gap**2 / 2 if gap < 1 else gap - 0.5 for gap in gaps)
    if kind == "kl":
        return mean(
            sum(p * math.log(p / q) for p, q in zip(softmax(target), softmax(row), strict=True)) for row, target in rows
        )
    if kind == "wasserstein":
        return mean(wasserstein_distance(row, target) for row, target in rows)
    if kind == "weighted_wasserstein":
        distances = []
        for (row, target), w in zip(rows, off_diagonal(weights), strict=True):
            u, v = ([x * y for x, y in zip(values, w, strict=True)] for values in (row, target))
            distances.append(wasserstein_distance(u, v, u_weights=w, v_weights=w))
        return mean(distances)
    assert kind == "paper_cumsum"
    gaps, first_sum, second_sum = [], 0.0, 0.0
    for a, b in pairs:
        first_sum, second_sum = first_sum + a, second_sum + b
        gaps.append(abs(first_sum - second_sum))
    return mean(gaps)


def mlp(rows, first_weight, first_bias, second_weight, second_bias):
    """Linear, GELU, linear."""
    result = []
    for row in rows:
        hidden = linear(row, first_weight, first_bias)
        hidden = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in hidden]
        result.append(linear(hidden, second_weight, second_bias))
    return result


# --- The method; what is given goes by the names of the method's state and of the fields of a batch.


def instance_terms(given):
    """ITC, ITM, IIC and TTC by name."""
    image, text, ids, tau = (given[name] for name in ("image", "text", "image_index", "temperature.value"))
    projections = {
        side: [given[f"project_{side}_teacher.{name}"] for name in ("weight", "bias")] for side in ("image", "text")
    }
    return {
        "itc": itc(image, text, ids, tau),
        "itm": matching(given["match_logits"], given["match_labels"]),
        "iic": distil(image, given["image_teacher"], *projections["image"], ids, tau),
        "ttc": distil(text, given["text_teacher"], *projections["text"], ids, tau),
    }


def structure_terms(given, relation_weights, distance_kind):
    """KD, KDI and KDT by name."""
    tau2, found = given.get("relation_temperature.value", 1.0), {}
    for side in ("image", "text"):
        rows = given[f"{side}_teacher"]
        if f"{side}_teacher_mlp.0.weight" in given:
            names = ("0.weight", "0.bias", "2.weight", "2.bias")
            rows = mlp(rows, *(given[f"{side}_teacher_mlp.{name}"] for name in names))
        found[side] = scaled(relations(rows, rows, distance_kind), tau2)
    target = fused(found["image"], found["text"], given["text_share.value"])
    # A derivative by the text moves the weights of kd, and not those of kdi and kdt.
    weights, constant = (
        [[1 - cosine for cosine in row] for row in relation(given[name])] for name in ("text", "constant_text")
    )
    kd = 0.0
    for kind, weight in relation_weights.items():
        instances = student_instances(given["image"], given["text"], given["fused"], kind)
        student = scaled(relations(*instances, distance_kind), tau2)
        kd += weight * distance(student, target, distance_kind, weights)
    return {
        "kd": kd,
        "kdi": distance(found["image"], target, distance_kind, constant),
        "kdt": distance(found["text"], target, distance_kind, constant),
    }


# --- Derivatives.


def gradient(function, value, step=1e-5):
    """Central differences of a function of nested lists, entry by entry."""
    if not isinstance(value, list):
        return derivative(function, value, step)
    return [
        gradient(lambda moved, i=i: function([*value[:i], moved, *value[i + 1 :]]), entry, step)
        for i, entry in enumerate(value)
    ]


def derivative(function, value, step=1e-5):
    """Central difference of a function of one number."""
    return (function(value + step) - function(value - step)) / (2 * step)
