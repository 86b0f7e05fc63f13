"""Agreement of pairs, as its docstring says it, by plain loops: one cosine at a time, and scikit-learn's ridge."""

import math

import numpy as np
import torch
from sklearn.linear_model import Ridge


def cosine(a, b):
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def normalised(rows):
    return np.stack([row / math.sqrt(row @ row) for row in rows])


def folds_of(images, folds, seed):
    """The images of each fold, in their random order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    return [[images[place] for place in order[fold::folds]] for fold in range(folds)]


def ridge(inputs, outputs, weights, penalty):
    """A function from features to predictions, and the mean that inputs are centred by."""
    mean = np.average(inputs, axis=0, weights=weights)
    variance = np.average((inputs - mean) ** 2, axis=0, weights=weights).mean()
    model = Ridge(alpha=penalty * variance * weights.sum()).fit(inputs, outputs, sample_weight=weights)
    return model.predict, np.average(outputs, axis=0, weights=weights)


def scores(image, text, index, weights, folds, penalty, seed, shuffles):
    """(C,) scores of the given pairs, and (shuffles, C) scores of shuffled pairs."""
    image, text = normalised(image), normalised(text)
    given, shuffled = np.zeros(len(index)), np.zeros((shuffles, len(index)))
    for images in folds_of(sorted(set(index)), folds, seed):
        pairs = [c for c, i in enumerate(index) if i in images]
        rest = [c for c in range(len(index)) if c not in pairs]
        x, t, w = image[[index[c] for c in rest]], text[rest], weights[rest]
        predict_text, text_mean = ridge(x, t, w, penalty)
        predict_image, image_mean = ridge(t, x, w, penalty)
        of_images = predict_text(image) - text_mean
        of_texts = predict_image(text) - image_mean
        for direction in (0, 1):
            table = {}
            for i in images:
                for c in pairs:
                    if direction == 0:
                        table[i, c] = cosine(of_images[i], text[c] - text_mean)
                    else:
                        table[i, c] = cosine(image[i] - image_mean, of_texts[c])
            of_image = {i: [table[i, c] for c in pairs] for i in images}
            of_text = {c: [table[i, c] for i in images] for c in pairs}

            def standardised(i, c, table=table, of_image=of_image, of_text=of_text):
                value = table[i, c]
                return sum((value - np.mean(other)) / np.std(other) for other in (of_image[i], of_text[c]))

            for c in pairs:
                given[c] += standardised(index[c], c)
                for shuffle in range(shuffles):
                    other = images[(images.index(index[c]) + shuffle + 1) % len(images)]
                    shuffled[shuffle, c] += standardised(other, c)
    return given, shuffled


def pool_adjacent_violators(values, labels, weights):
    """The non-decreasing step function of least squares, by value."""
    order = sorted(range(len(values)), key=lambda k: values[k])
    blocks = []  # [sum of weighted labels, weight, the values]
    for k in order:
        blocks.append([labels[k] * weights[k], weights[k], [values[k]]])
        if len(blocks) > 1 and blocks[-2][2][-1] == values[k]:  # equal values share a level
            total, weight, members = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + weight, blocks[-1][2] + members]
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, weight, members = blocks.pop()
            blocks[-1] = [blocks[-1][0] + total, blocks[-1][1] + weight, blocks[-1][2] + members]
    return {value: total / weight for total, weight, members in blocks for value in members}


def probabilities(given, shuffled, share):
    values = [*given, *shuffled.ravel()]
    labels = [1] * len(given) + [0] * shuffled.size
    weights = [len(shuffled)] * len(given) + [1] * shuffled.size
    level = pool_adjacent_violators(values, labels, weights)
    found = []
    for value in given:
        among_all = level[value]
        found.append(min(1, max(0, 1 - share * (1 - among_all) / among_all)) if among_all > 0 else 0)
    return np.array(found)
