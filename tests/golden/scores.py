"""What NumPy and scikit-learn make of the features that the tests of `src/advise` build too.

    python3 scores.py > scores.json

LogME is the loop of the authors' code (github.com/thuml/LogME, the version of the journal), with an SVD of the
features themselves; its prior counts for as many weights as there are singular values above 0. The H-score takes
the shrinkage from scikit-learn. Cross-validation is LogisticRegression(C=4 / columns) behind StandardScaler. Confident learning
is written out by hand from the paper.

Written with NumPy 2.4.6 and scikit-learn 1.9.1.
"""

import json

import numpy as np
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Name, rows, columns, labels, folds, and the classes of all rows.
CASES = [
    ("balanced", 60, 7, 3, 4, lambda row: row % 3),
    ("unbalanced", 90, 12, 4, 5, lambda row: 0 if row % 3 else (1 if row % 9 else (2 if row % 27 else 3))),
    ("few rows", 30, 48, 3, 3, lambda row: row // 2 % 3),
    ("larger", 600, 64, 5, 5, lambda row: row * row % 5 if row % 7 else row % 5),
]


def features(n, cols, classes):
    """Noise of whole numbers, exact in f32, a few of whose columns know the class."""
    state = np.uint64(12345)
    values = np.empty((n, cols))
    with np.errstate(over="ignore"):
        for row in range(n):
            for col in range(cols):
                # Knuth's MMIX generator.
                state = state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)
                # Columns differ in scale and mean; some lean on each other by the class.
                noise = int(state >> np.uint64(44)) / 2**19 - 1.0
                own = 0.5 * ((classes[row] + col) % 3) if col % 4 == 0 else 0.0
                values[row, col] = (noise + own) * (1 + col % 5) + 0.25 * (col % 3)
    return values.astype(np.float32).astype(np.float64)


def logme(f, y):
    n = len(f)
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    k = int((s > 1e-10).sum())
    u, sigma = u[:, :k], s[:k] ** 2
    evidences = []
    for label in np.unique(y):
        y_ = (y == label).astype(np.float64)
        x2 = (u.T @ y_) ** 2
        res_x2 = (y_**2).sum() - x2.sum()
        alpha = beta = 1.0
        for _ in range(11):
            t = alpha / beta
            gamma = (sigma / (sigma + t)).sum()
            m2 = (sigma * x2 / (t + sigma) ** 2).sum()
            res2 = (x2 / (1 + sigma / t) ** 2).sum() + res_x2
            alpha = gamma / (m2 + 1e-5)
            beta = (n - gamma) / (res2 + 1e-5)
            if abs(alpha / beta - t) / t <= 1e-3:
                break
        evidence = k / 2 * np.log(alpha) + n / 2 * np.log(beta) - 0.5 * np.log(alpha + beta * sigma).sum()
        evidence += -beta / 2 * res2 - alpha / 2 * m2 - n / 2 * np.log(2 * np.pi)
        evidences.append(evidence / n)
    return float(np.mean(evidences))


def h_score(f, y):
    covariance, alpha = ledoit_wolf(f)
    means = np.stack([f[y == label].mean(0) for label in y])
    return float((1 - alpha) * np.trace(np.linalg.solve(covariance, np.cov(means, rowvar=False, bias=True)))), float(alpha)


def cross_validate(f, y, n_folds):
    fold = np.arange(len(y)) // 6 % n_folds
    probabilities = np.empty((len(y), y.max() + 1))
    for out in range(n_folds):
        probe = make_pipeline(
            StandardScaler(), LogisticRegression(C=4 / f.shape[1], tol=1e-12, solver="newton-cg", max_iter=1000)
        )
        probe.fit(f[fold != out], y[fold != out])
        assert len(probe.classes_) == y.max() + 1
        probabilities[fold == out] = probe.predict_proba(f[fold == out])
    predicted = probabilities.argmax(1)
    nll = -np.log(probabilities[np.arange(len(y)), y]).mean()
    return probabilities, {
        "accuracy": float((predicted == y).mean()),
        "macro_f1": float(f1_score(y, predicted, average="macro")),
        "nll": float(nll),
    }


def confident_learning(probabilities, y):
    n_labels = probabilities.shape[1]
    thresholds = np.array([probabilities[y == label, label].mean() for label in range(n_labels)])
    joint = np.zeros((n_labels, n_labels))
    suspects = []
    for row, (p, given) in enumerate(zip(probabilities, y)):
        above = np.flatnonzero(p >= thresholds)
        if len(above):
            suggested = above[p[above].argmax()]
            joint[given, suggested] += 1
            if suggested != given:
                suspects.append((p[given] - p[suggested], row, int(suggested)))
    calibrated = joint / joint.sum(1, keepdims=True) * np.bincount(y)[:, None]
    share = 1 - np.trace(calibrated) / calibrated.sum()
    suspects.sort()
    return {"share": float(share), "suspects": [[row, suggested] for _, row, suggested in suspects]}


def main():
    figures = {}
    for name, n, cols, n_labels, n_folds, label in CASES:
        y = np.array([label(row) for row in range(n)])
        f = features(n, cols, y)
        score, alpha = h_score(f, y)
        probabilities, quality = cross_validate(f, y, n_folds)
        noise = confident_learning(probabilities, y)
        figures[name] = {"logme": logme(f, y), "h_score": score, "shrinkage": alpha, **quality, "noise": noise}
    lines = (f"  {json.dumps(name)}: {json.dumps(case)}" for name, case in figures.items())
    print("{\n" + ",\n".join(lines) + "\n}")


if __name__ == "__main__":
    main()
