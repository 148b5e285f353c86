"""Twins of `resid.theory.small_weights`: numbers one by one, units one by one, every matrix in full."""


def network_twin(weights, biases, x):
    """Equation (3) of Li et al. for one sample (d,), in Python floats; sums are paired as `ordered_dot` pairs them."""
    h = x.tolist()
    for (W1, W2), b in zip(weights.tolist(), biases.tolist(), strict=True):
        hidden = [
            max(paired_sum([w * v for w, v in zip(row, h, strict=True)]) + c, 0.0) for row, c in zip(W1, b, strict=True)
        ]
        h = [v + paired_sum([w * a for w, a in zip(row, hidden, strict=True)]) for v, row in zip(h, W2, strict=True)]
    return h


def paired_sum(values):
    """First half plus second half, entry by entry, until one number is left."""
    while len(values) > 1:
        half = len(values) // 2
        values = [values[i] + values[half + i] for i in range(half)] + values[2 * half :]
    return values[0]


def least_distance_twin(X, Y):
    """The least distance that two vectors at rest or about to move can have."""
    pairs = [(A[i], A[j]) for A in (X, Y) for i in range(len(A)) for j in range(i)]
    pairs += [(X[i], Y[j]) for i in range(len(X)) for j in range(i)]  # y[j] is taken before x[i] has left
    return min(float((a - b).norm()) for a, b in pairs)
