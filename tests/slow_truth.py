"""The four operations again, pixel by pixel in plain Python and numpy: a second truth that shares no code with them."""

from __future__ import annotations

import math

import numpy as np


def contexts_of(target: np.ndarray, valid: np.ndarray, parts: int, kind: str, open_top: bool = False) -> list[list]:
    """Lists of (row, column) of each context of one image, empty ones left out."""
    height, width = target.shape
    pixels = [(i, j) for i in range(height) for j in range(width) if valid[i, j]]
    if not pixels:
        return []
    if kind == "spatial":
        rows = [math.floor(height * k / parts) for k in range(parts + 1)]
        columns = [math.floor(width * k / parts) for k in range(parts + 1)]
        found = [
            [(i, j) for i, j in pixels if rows[a] <= i < rows[a + 1] and columns[b] <= j < columns[b + 1]]
            for a in range(parts)
            for b in range(parts)
        ]
    else:
        values = np.array([float(target[p]) for p in pixels])
        if kind == "range":
            low, high = values.min(), values.max()
            edges = [low + (high - low) * k / parts for k in range(parts)] + [high]
        else:
            edges = [np.quantile(values, k / parts) for k in range(parts)] + [values.max()]
        found = [[] for _ in range(parts)]
        for pixel, value in zip(pixels, values, strict=True):
            for k in reversed(range(parts)):
                if value >= edges[k]:
                    if not (open_top and value >= edges[parts]):
                        found[k].append(pixel)
                    break
    return [context for context in found if context]


def statistics(image: np.ndarray, context: list, eps: float, extra: int = 0) -> tuple[float, float]:
    """Lower median and mean absolute deviation + eps."""
    values = sorted(float(image[p]) for p in context)
    center = values[(len(values) - 1) // 2]
    return center, sum(abs(v - center) for v in values) / (len(values) + extra) + eps


def hybrid_norm(
    prediction: np.ndarray,
    target: np.ndarray,
    valid: np.ndarray,
    segments=(1, 2, 4),
    contexts: str = "range",
    eps: float = 1e-6,
    compat: bool = False,
) -> tuple[float, np.ndarray]:
    """Loss and its gradient, the latter by the formula of the definition rather than by differentiation."""
    count = max(int(valid.sum()), 1)
    total, gradient = 0.0, np.zeros(prediction.shape)
    for b in range(len(prediction)):
        levels = [
            contexts_of(target[b], valid[b], parts, contexts, compat and contexts != "spatial") for parts in segments
        ]
        held = np.zeros(prediction.shape[1:])
        for level in levels:
            for context in level:
                for pixel in context:
                    held[pixel] += 1
        for context in (context for level in levels for context in level):
            n = len(context) + compat
            c, s = statistics(prediction[b], context, eps, int(compat))
            ct, st = statistics(target[b], context, eps, int(compat))
            sigma, big_a, big_q = {}, 0.0, 0.0
            for pixel in context:
                difference = (float(prediction[b][pixel]) - c) / s - (float(target[b][pixel]) - ct) / st
                total += abs(difference) / held[pixel] / count
                sigma[pixel] = np.sign(difference) / held[pixel] / count
                big_a += sigma[pixel]
                big_q += sigma[pixel] * (float(prediction[b][pixel]) - c)
            signs = {pixel: np.sign(float(prediction[b][pixel]) - c) for pixel in context}
            for pixel in context:
                gradient[b][pixel] += sigma[pixel] / s - big_q * signs[pixel] / (s * s * n)
            first = min(pixel for pixel in context if float(prediction[b][pixel]) == c)
            gradient[b][first] += -big_a / s + big_q * sum(signs.values()) / (s * s * n)
    return total, gradient


def sample(image: np.ndarray, x: float, y: float) -> float:
    """Bilinear value at a point, pixel centres at integers, the border repeated."""
    height, width = image.shape
    x, y = min(max(x, 0.0), width - 1), min(max(y, 0.0), height - 1)
    j, i = math.floor(x), math.floor(y)
    value = 0.0
    for di, wi in ((0, 1 - (y - i)), (1, y - i)):
        for dj, wj in ((0, 1 - (x - j)), (1, x - j)):
            if wi * wj > 0:
                value += wi * wj * float(image[i + di, j + dj])
    return value


def crop_ssi(prediction, targets, boxes, image_index, valid, segments=(1,), contexts="range", eps=1e-6) -> float:
    """Loss of section 2 of the definition."""
    _, h, w = targets.shape
    means = []
    for n, (x0, y0, x1, y1) in enumerate(boxes):
        if not valid[n].any():
            continue
        crop = np.array(
            [
                [
                    sample(
                        prediction[image_index[n]],
                        x0 + (j + 0.5) * (x1 - x0) / w - 0.5,
                        y0 + (i + 0.5) * (y1 - y0) / h - 0.5,
                    )
                    for j in range(w)
                ]
                for i in range(h)
            ]
        )
        means.append(hybrid_norm(crop[None], targets[n : n + 1], valid[n : n + 1], segments, contexts, eps)[0])
    return sum(means) / max(len(means), 1)


def channel_kl(student: np.ndarray, teacher: np.ndarray, valid: np.ndarray, temperature: float) -> float:
    """Loss of section 3 of the definition for `(B, C, H, W)`."""
    losses = []
    for b in range(student.shape[0]):
        if not valid[b].any():
            continue
        for c in range(student.shape[1]):
            s, t = student[b, c][valid[b]] / temperature, teacher[b, c][valid[b]] / temperature
            phi_s, phi_t = np.exp(s - s.max()), np.exp(t - t.max())
            phi_s, phi_t = phi_s / phi_s.sum(), phi_t / phi_t.sum()
            losses.append(temperature**2 * float((phi_t * (np.log(phi_t) - np.log(phi_s))).sum()))
    return sum(losses) / max(len(losses), 1)
