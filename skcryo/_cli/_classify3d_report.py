"""What ``skcryo classify3d`` leaves: files, pictures, the report and the verdict."""

import shlex

import numpy as np

from ._abinitio import starts_table
from ._abinitio import verdict as ab_initio_verdict
from ._charts import bar_chart, coverage_chart, fsc_chart, line_chart
from ._pictures import draw_fsc, draw_volume, fsc_star, picture, resolution_fact
from ._report import figure, heading, paragraph, table, verdict_box, volume_grid
from ._run_folder import write_text


def write(run, start, estimator, found, halves, volumes):
    """Write all results.

    Parameters
    ----------
    run : Run
    start : AbInitioVolume or None
    estimator : CommonLinesMaxCut
        With the parameters of the run.
    found : dict
        From :func:`skcryo._cli._classify3d.find_classes`.
    halves : ndarray of shape (n,), int
        0 or 1.
    volumes : list of FourierReconstructor or None
        Of all particles, then of each class.

    Returns
    -------
    trusted : bool
    verdict : str
    """
    from ..io import save_volume, write_star

    settings, voxel_size = run.settings, run.settings.working_pixel_size
    write_star(
        run.paths["particles.star"],
        run.stack,
        labels=found["labels"],
        rotations=found["rotations"],
        shifts=found["shifts"] * settings.scale,
        columns={"rlnRandomSubset": halves + 1},
        overwrite=True,
    )
    made = {name: volume for name, volume in zip(_names(settings.n_classes), volumes) if volume is not None}
    for name, volume in made.items():
        save_volume(run.paths[f"{name}.mrc"], volume.volume_, voxel_size, overwrite=True)
        for half, density in enumerate(volume.half_maps_ if name != "volume" else (), start=1):
            save_volume(run.paths[f"{name}_half{half}.mrc"], density, voxel_size, overwrite=True)
    missing = [f"class{k}" for k, volume in enumerate(volumes) if volume is None]
    run.leave_out(name for name in run.paths if name.split(".")[0].split("_")[0] in missing)
    write_text(
        run.paths["fsc.star"],
        "".join(fsc_star(volume.fsc_, settings.working_box, voxel_size, name) for name, volume in made.items()),
    )
    with run.pictures():
        _draw(run, found, made)
    trusted, text = verdict(start, found)
    facts = _facts(run, start, found, made) | {"confirmed": trusted, "verdict": text}
    run.finish(
        title=f"Classes of {len(run.stack)} particles from common lines",
        summary=_summary(run, facts),
        body=[verdict_box(text, trusted), *_blocks(run, start, found, made, facts)],
        facts=facts,
        estimators=[each for each in (start, estimator, volumes[0]) if each is not None],
        next_steps=_next_steps(run, facts),
    )
    return trusted, text


def _names(n_classes):
    """Names of the volumes: of all particles, of each class."""
    return ["volume", *(f"class{k}" for k in range(1, n_classes + 1))]


def _draw(run, found, made):
    box, voxel_size = run.settings.working_box, run.settings.working_pixel_size
    curves = [volume.fsc_ for volume in made.values()]
    names = [name.replace("class", "class ").replace("volume", "all") for name in made]
    draw_fsc(run.paths["fsc.png"], curves, box_size=box, pixel_size=voxel_size, names=names)
    for name, volume in made.items():
        draw_volume(run.paths["slices.png" if name == "volume" else f"{name}.png"], volume.volume_, voxel_size)
    with picture(run.paths["weights.png"], "the weight matrix", size=(5.5, 5), place=(0.02, 0.02, 0.96, 0.96)) as ax:
        ax.imshow(weight_levels(found["weights"]), cmap="gray", vmin=0, vmax=255)
        ax.set_axis_off()
        for edge in np.cumsum(np.bincount(found["labels"]))[:-1] / len(found["labels"]) * len(found["weights"]) - 0.5:
            ax.axhline(edge, color="C1", linewidth=1)
            ax.axvline(edge, color="C1", linewidth=1)


def weight_levels(weights):
    """The picture of the weight matrix as grey levels, dark where particles go together."""
    off = weights[~np.eye(len(weights), dtype=bool)]
    low, high = np.percentile(off, [1, 99]) if len(off) else (0.0, 1.0)
    levels = (weights - low) * (255.0 / max(high - low, np.finfo(np.float32).tiny))
    return np.clip(levels, 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------------ verdict
def told_apart(found):
    """Which pairs of classes held-out particles tell apart: (K, K), bool, diagonal True."""
    from ..heterogeneity._separation import Separation

    return Separation(found["separation"], found["separation_error"], len(found["labels"])).distinct


def groups(distinct):
    """Classes that are not told apart, together: list of lists, in order."""
    left, found = list(range(len(distinct))), []
    while left:
        group = [left.pop(0)]
        for k in group:
            group += [other for other in left if not distinct[k, other]]
            left = [other for other in left if distinct[k, other]]
        found.append(sorted(group))
    return found


def verdict(start, found):
    """Whether there are as many classes as were asked for, and whether these are them, in a sentence or two.

    Parameters
    ----------
    start : AbInitioVolume or None
    found : dict
        From :func:`skcryo._cli._classify3d.find_classes`.

    Returns
    -------
    trusted : bool
    text : str
    """
    if start is not None and not start.converged_:
        return False, f"{ab_initio_verdict(start)} Classes rest on it."
    n_classes = len(found["separation"])
    there = groups(told_apart(found))
    if len(there) == n_classes:
        if found["reason"] is not None:
            return False, f"NOT CONVERGED: {found['reason']}."
        least = found["separation"][np.triu_indices(n_classes, 1)].min()
        return True, (
            f"Confirmed: {n_classes} classes. Particles that took no part in finding them are likelier by {least:.2g} "
            f"or more (log-likelihood of a particle) with {n_classes} volumes than with fewer."
        )
    together = "; ".join(_listed([k + 1 for k in group]) for group in there if len(group) > 1)
    shown = "is one class: use volume.mrc" if len(there) == 1 else f"are {len(there)} classes: give -k {len(there)}"
    poses = "" if start is not None else ", or poses of an ab initio volume (--poses abinitio)"
    return False, (
        f"NOT CONFIRMED: particles that took no part in finding them do not tell classes {together} apart. As far as "
        f"these particles show there {shown}, or more particles{poses}."
    )


def _listed(numbers):
    """Numbers as a person lists them: "1, 2 and 3"."""
    return " and ".join(filter(None, [", ".join(map(str, numbers[:-1])), str(numbers[-1])]))


# ------------------------------------------------------------------------------------------------------------- report
def _facts(run, start, found, made):
    """Facts for run.json."""
    counts = np.bincount(found["labels"], minlength=len(found["separation"]))
    facts = {
        "class_sizes": counts.tolist(),
        "separation": found["separation"].round(4).tolist(),
        "separation_error": found["separation_error"].round(4).tolist(),
        "cut_value": found["cut_value"],
        "upper_bound": found["upper_bound"],
        "objective_path": found["objective_path"].tolist(),
        "class_log_likelihood": found["likelihood"].round(4).tolist(),
        "iterations": int(found["n_iter"]),
        "box": run.settings.working_box,
        "voxel_size": run.settings.working_pixel_size,
        "resolution": {name: resolution_fact(volume.resolution_) for name, volume in made.items()},
        "fsc": {name: volume.fsc_.round(6).tolist() for name, volume in made.items()},
    }
    if start is not None:
        facts["start"] = {"converged": bool(start.converged_), "verdict": ab_initio_verdict(start)}
    return facts


def _summary(run, facts):
    sizes = facts["class_sizes"]
    return (
        f"{len(run.stack)} particles at {facts['box']} px and {facts['voxel_size']:.4g} Å in {len(sizes)} classes "
        f"of {_listed(sizes)}."
    )


def _blocks(run, start, found, made, facts):
    """All of the report between verdict and settings."""
    box, voxel_size, counts = facts["box"], facts["voxel_size"], np.array(facts["class_sizes"])
    resolution = {name: "-" if value is None else f"{value:.1f} Å" for name, value in facts["resolution"].items()}
    rows = [
        (k, count, f"{count / counts.sum():.1%}", resolution.get(f"class{k}", "no volume"), f"{likelihood:.2f}")
        for k, (count, likelihood) in enumerate(zip(counts, facts["class_log_likelihood"]), start=1)
    ]
    yield heading("Classes")
    yield table(("class", "particles", "share", "half maps agree to", "log-likelihood of a particle"), rows)
    yield bar_chart(counts, np.arange(1, len(counts) + 1))
    yield heading("Are they really there?")
    yield paragraph(
        "Each half of the particles was classified by itself. This is how much likelier the particles of the other "
        "half are with two volumes than with one for both classes; what is not clearly above zero is one class."
    )
    yield table(("classes", "gain in log-likelihood of a particle", "two classes"), _pair_rows(found))
    yield heading("The cut")
    yield paragraph(
        f"Weight between classes: {facts['cut_value']:.6g}, certified to be at most {facts['upper_bound']:.6g} for any "
        f"division into {len(counts)}, a ratio of {facts['cut_value'] / (facts['upper_bound'] or 1):.4f}. A pair of "
        "particles weighs what their common line and their poses disagree by. Below, the weights with the particles of "
        "one class together: where lines alone show classes, blocks on the diagonal are darker."
    )
    yield figure(weight_levels(found["weights"]), "Weight matrix", "", wide=True)
    if len(found["objective_path"]) > 1:
        yield heading("Convergence")
        yield line_chart(found["objective_path"], "Objective")
    first = None
    for name, volume in made.items():
        yield heading(
            "All particles" if name == "volume" else f"Class {name[5:]}: {counts[int(name[5:]) - 1]} particles"
        )
        yield volume_grid(volume.volume_)
        if name != "volume":
            if first is not None:
                yield heading(f"Class {name[5:]} minus class {first[0]}")
                yield volume_grid(volume.volume_ - first[1])
            first = first or (name[5:], volume.volume_)
    yield heading("Fourier shell correlation of the half maps")
    yield fsc_chart([volume.fsc_ for volume in made.values()], box, voxel_size, list(made))
    yield heading("Viewing directions")
    yield paragraph("Coloured by class. Classes that are views, not molecules, lie apart here.")
    yield coverage_chart(found["rotations"], found["labels"])
    if start is not None:
        yield heading("The volume that poses are from")
        yield paragraph(ab_initio_verdict(start))
        yield starts_table(start)


def _pair_rows(found):
    gains, errors, distinct = found["separation"], found["separation_error"], told_apart(found)
    for k, m in zip(*np.triu_indices(len(gains), 1)):
        told = f"{gains[k, m]:.3g} \u00b1 {errors[k, m]:.1g}"
        yield f"{k + 1} and {m + 1}", told, "yes" if distinct[k, m] else "no"


def _next_steps(run, facts):
    star = shlex.quote(str(run.paths["particles.star"]))
    steps = []
    if facts["confirmed"]:
        steps.append(("Particles of one class", f"skcryo classify2d {star} --select 1 -o class1.star"))
        steps.append(("A class at the full box", "skcryo reconstruct class1.star -o class1"))
    else:
        steps.append(("One volume of all, at the full box", f"skcryo reconstruct {star} -o volume"))
    return [*steps, ("Go on in Python", f"skcryo.io.load_particles({str(run.paths['particles.star'])!r})")]
