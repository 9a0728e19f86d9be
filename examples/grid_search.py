"""Choosing parameters with scikit-learn's own tools: a pipeline, a grid, a scorer that knows the truth.

Run it with ``python examples/grid_search.py``. The images travel as one ``ParticleStack``:
cross-validation slices it together with its CTF, and no fold copies pixels out of a file.
"""

# %%
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skcryo.cluster import RotInvWassersteinKMeans
from skcryo.datasets import make_molecule, make_particles
from skcryo.metrics import make_view_coherence_scorer
from skcryo.preprocessing import FourierDownsampler, NormalizeBackground

N_PARTICLES = 240
BOX = 32
PIXEL_SIZE = 320 / BOX  # Angstrom


def main():
    """Search the metric and the box size; return the fitted search."""
    molecule = make_molecule(BOX, voxel_size=PIXEL_SIZE, random_state=0)
    particles, truth = make_particles(
        molecule, N_PARTICLES, preset="paper", snr=0.5, pixel_size=PIXEL_SIZE, random_state=0
    )

    # %%
    # Every step is an estimator; parameters of a step are set by its name, two underscores and the
    # parameter's name.
    model = make_pipeline(
        FourierDownsampler(24),
        NormalizeBackground(),
        RotInvWassersteinKMeans(n_clusters=8, n_angles=40, random_state=0),
    )
    grid = {
        "fourierdownsampler__box_size": [16, 24],
        "rotinvwassersteinkmeans__metric": ["l2", "sobolev"],
    }

    # %%
    # Two folds: fitted on one half, scored on the classes that the other half is given, by the share of
    # pairs in one class whose true views differ by less than 30 degrees.
    search = GridSearchCV(model, grid, scoring=make_view_coherence_scorer(30), cv=2)
    return search.fit(particles, truth.rotations)


if __name__ == "__main__":
    search = main()
    for parameters, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"]):
        print(f"{score:.3f}  {parameters}")
    print(f"best: {search.best_params_}")
