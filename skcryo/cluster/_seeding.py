"""First class averages: k-means++ (algorithm 2 of the Wasserstein k-means paper), or random images."""

import numpy as np


def random_averages(data, weights, n_clusters, rng):
    """Distinct images, as class averages of one image each."""
    return _as_averages(data, np.sort(rng.choice(np.flatnonzero(weights > 0), n_clusters, replace=False)))


def plus_plus_averages(data, weights, search, n_clusters, rng, *, n_sample, n_trials):
    """k-means++ on a sample of the images: each next one is drawn with a chance proportional to its squared distance to
    those chosen; of `n_trials` draws the one is kept that leaves the least sum of squared distances.
    """
    index = np.arange(len(data))
    if n_sample < len(data):
        index = np.sort(rng.choice(len(data), n_sample, replace=False))
    sample, weights = data.select(index), weights[index]
    features = [part for _, part in sample.features(search)]

    def squared_distances(candidates):
        averages = _as_averages(sample, candidates)
        costs = [search.find(part, averages, return_all=True).all_costs for part in features]
        return np.concatenate(costs).astype(np.float64).T ** search.power

    chosen = [_draw(rng, weights, 1)[0]]
    closest = squared_distances(chosen)[0]
    while len(chosen) < n_clusters:
        candidates = _draw(rng, closest * weights, n_trials)
        nearer = np.minimum(closest, squared_distances(candidates))
        best = int((nearer * weights).sum(1).argmin())
        chosen.append(candidates[best])
        closest = nearer[best]
        closest[chosen] = 0  # an image is at no distance of itself, whatever a mask leaves of it
    return _as_averages(sample, chosen)


def _draw(rng, chances, n):
    total = chances.sum()
    if not total > 0:
        return rng.choice(len(chances), n)
    return rng.choice(len(chances), n, p=chances / total)


def _as_averages(data, index):
    """Each of a few images as the class average of itself, its CTF corrected for."""
    few = data.select(np.asarray(index))
    n = len(few)
    return few.averages(np.arange(n), np.zeros(n), np.zeros((n, 2)), n)[0]
