"""Writes si_digits.csv, si_digits_nearest.csv and si_digits_expected.csv beside this file.

    python -m venv env && env/bin/pip install scikit-learn==1.9.1 && env/bin/python si_sklearn.py

Features: the first 280 images of the digits bundled with scikit-learn (load_digits: 8x8 pixels,
integers 0 to 16), the test part of E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0. Changes: rows
280 on are copies of earlier rows, some with the same and some with another label, and a class that
has one sample (label 10) is added.

Tie rule: scikit-learn leaves the order of equal distances open, and these rows have many. The
squared distances are integers, so each model here is given the precomputed key

    key(i, j) = |x_i - x_j|^2 * M + j

an integer below 2^53, exact in float64. Its order is (distance, index), so the lowest index wins,
and no two keys of a row are equal. Leaving one out removes the sample itself by its index.
"""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid, NearestNeighbors

HERE = Path(__file__).parent
ORDER = 3
BANK = 200  # the cross form: rows from here on are queries, the rows before are the bank

digits = load_digits()
x, y = digits.data[:280].astype(np.int64), digits.target[:280]
copied = np.array([0, 3, 3, 17, 40, 41, 99, 150, 151, 200, 222, 279, 5, 60, 120, 180, 240, 17, 3, 7])
labels = y[copied].copy()
labels[12:19] = (labels[12:19] + 1 + np.arange(7)) % 10  # under another label
labels[19] = 10  # a class of one
x, y = np.vstack([x, x[copied]]), np.concatenate([y, labels])
m = len(y)

dist2 = ((x[:, None, :] - x[None, :, :]) ** 2).sum(axis=2)
key = (dist2 * m + np.arange(m)).astype(np.float64)
assert key.max() < 2**53

# SI is the accuracy of 1-NN, leaving one out.
one = KNeighborsClassifier(n_neighbors=1, algorithm="brute", metric="precomputed")
predicted = cross_val_predict(one, key, y, cv=LeaveOneOut())
correct = predicted == y

# The nearest of each sample, its index left out by hand.
nearest = np.empty((m, ORDER), dtype=np.int64)
for i in range(m):
    others = np.delete(np.arange(m), i)
    model = NearestNeighbors(n_neighbors=ORDER, algorithm="brute", metric="precomputed")
    model.fit(key[np.ix_(others, others)])
    nearest[i] = others[model.kneighbors(key[i : i + 1, others], return_distance=False)[0]]
assert ((y[nearest[:, 0]] == y) == correct).all()
same = y[nearest] == y[:, None]

# Whether the file tests what it is for: anchors whose nearest distance is shared, by samples of
# different labels.
off = dist2 + np.where(np.eye(m, dtype=bool), dist2.max() + 1, 0)
tied = [np.flatnonzero(row == row.min()) for row in off]
decided = sum(len(set(y[t])) > 1 for t in tied)
print(sum(len(t) > 1 for t in tied), "ties,", decided, "of them between labels")
assert decided > 5

centroid = NearestCentroid().fit(x, y)
by_centre = centroid.predict(x) == y

one = KNeighborsClassifier(n_neighbors=1, algorithm="brute", metric="precomputed")
one.fit(key[:BANK, :BANK], y[:BANK])
cross = one.predict(key[BANK:, :BANK]) == y[BANK:]

rows = [("si", correct.sum(), m)]
rows += [(f"class {c}", correct[y == c].sum(), (y == c).sum()) for c in range(11)]
rows += [
    (f"high order {ORDER}", same.all(axis=1).sum(), m),
    (f"soft {ORDER}", same.sum(), m * ORDER),
    (f"anti {ORDER}", (~same).all(axis=1).sum(), m),
    ("centre", by_centre.sum(), m),
    ("cross", cross.sum(), m - BANK),
]

np.savetxt(HERE / "si_digits.csv", np.column_stack([x, y]), fmt="%d", delimiter=",")
np.savetxt(HERE / "si_digits_nearest.csv", nearest, fmt="%d", delimiter=",")
with open(HERE / "si_digits_expected.csv", "w", newline="\n") as out:
    out.writelines(f"{name},{count},{total}\n" for name, count, total in rows)
