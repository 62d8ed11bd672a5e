"""The space of people: which shape targets change the head, how random people weigh them, and its PCA.

A person is a linear combination of P targets (P, V, 3): macro targets (ancestry, sex, age, build; their
weights are products of piecewise-linear memberships), local +/- pairs, whole-head shapes and asymmetries.
Because the combination is linear, the principal components follow from the P x P covariance of the weights:
thousands of people cost no more than their weight vectors.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from avtool.head.bake.source import AnnyData

# Anchor positions of the macro levels on the unit interval, in the order of the level names.
MACRO_LEVELS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "gender": (("female", "male"), (0.0, 1.0)),
    "age": (("baby", "child", "young", "old"), (0.0, 1 / 3, 2 / 3, 1.0)),
    "muscle": (("minmuscle", "averagemuscle", "maxmuscle"), (0.0, 0.5, 1.0)),
    "weight": (("minweight", "averageweight", "maxweight"), (0.0, 0.5, 1.0)),
    "height": (("minheight", "maxheight"), (0.0, 1.0)),
    "proportions": (("uncommonproportions", "idealproportions"), (0.0, 1.0)),
}
ANCESTRIES = ("african", "asian", "caucasian")
# Standard deviation of a local target's weight, by its group: wider than 0.1-0.25 is caricature.
LOCAL_DEVIATIONS = {"head": 0.12, "neck": 0.12, "torso": 0.10, "nose": 0.24, "mouth": 0.22, "chin": 0.22, "eyes": 0.2, "ears": 0.25}
OTHER_DEVIATION = 0.2
MIN_HEAD_EFFECT = 3e-4  # meters: a local target that moves the head less than this is left out
SKIPPED_GROUPS = ("genitals", "breast")
CHILD_SHARE = 0.12


@dataclass
class Targets:
    """The targets that matter: displacements (P, V, 3) m in the order macro, plus, minus, single, asymmetry."""

    displacements: np.ndarray
    macro_keys: list[tuple[str, ...]]
    pairs: list[tuple[str, str]]  # (group, base name without side); same base name = left and right of one feature
    pair_deviations: np.ndarray
    num_single: int
    num_asymmetry: int


def load_targets(data: AnnyData, vertex_ids: np.ndarray, num_base: int, head_vertices: np.ndarray) -> Targets:
    """Read all targets at the base-mesh vertices `vertex_ids` (V,); head_vertices (V,) bool marks the head."""
    position = np.full(num_base, -1)
    position[vertex_ids] = np.arange(len(vertex_ids))

    def dense(name: str) -> np.ndarray:
        index, delta = data.target(name)
        out = np.zeros((len(vertex_ids), 3), dtype=np.float32)
        kept = position[index] >= 0
        out[position[index[kept]]] = delta[kept]
        return out

    names = set(data.target_names())
    macro = [(key, name) for key, name in _macro_names() if name in names]
    groups, minus, plus, deviations, used = [], [], [], [], set()
    for group, negative, positive in _local_pairs(data.json("mpfb2/targets/target.json")):
        low, high = dense(f"{group}/{negative}"), dense(f"{group}/{positive}")
        effect = max(np.linalg.norm(d[head_vertices], axis=1).max() for d in (low, high))
        if effect > MIN_HEAD_EFFECT:
            sideless = positive[2:] if positive[:2] in ("l-", "r-") else positive
            groups.append((group, sideless))
            minus.append(low)
            plus.append(high)
            deviations.append(_pair_deviation(group, positive))
            used |= {f"{group}/{negative}", f"{group}/{positive}"}
    single = sorted(n for n in names if n.startswith("head/") and n not in used)
    asymmetry = sorted(n for n in names if n.startswith("asym/"))
    rest = [dense(n) for n in [*single, *asymmetry]]
    stacked = np.stack([*(dense(name) for _, name in macro), *plus, *minus, *rest])
    return Targets(stacked, [k for k, _ in macro], groups, np.array(deviations), len(single), len(asymmetry))


def _macro_names() -> list[tuple[tuple[str, ...], str]]:
    level = {k: v[0] for k, v in MACRO_LEVELS.items()}
    out = []
    for build in itertools.product(level["gender"], level["age"], level["muscle"], level["weight"]):
        stem = "-".join(build)
        out.append((build, f"macrodetails/universal-{stem}"))
        for kind in ("height", "proportions"):
            out.extend(((*build, x), f"macrodetails/{kind}/{stem}-{x}") for x in level[kind])
    for face in itertools.product(ANCESTRIES, level["gender"], level["age"]):
        out.append((face, f"macrodetails/{'-'.join(face)}"))
    return out


def _local_pairs(metadata: dict) -> list[tuple[str, str, str]]:
    """(group, negative target, positive target) of all opposed targets."""
    out = []
    for group, entry in metadata.items():
        if group in SKIPPED_GROUPS:
            continue
        for category in entry["categories"]:
            opposites = category.get("opposites", {})
            for side in ("left", "right", "unsided"):
                pair = opposites.get(f"negative-{side}"), opposites.get(f"positive-{side}")
                if all(pair):
                    out.append((group, *pair))
    return out


def _pair_deviation(group: str, positive: str) -> float:
    deviation = LOCAL_DEVIATIONS.get(group, OTHER_DEVIATION)
    # Unsided sideways shifts skew the whole feature off center: people show little of that.
    return deviation * (0.4 if "-trans-out" in positive and positive[:2] not in ("l-", "r-") else 1.0)


def sample_weights(targets: Targets, count: int, rng: np.random.Generator) -> np.ndarray:
    """Target weights (count, P) of random people."""
    partners: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(targets.pairs):
        partners.setdefault(key, []).append(i)
    left = np.array([p[0] for p in partners.values() if len(p) == 2], dtype=np.int64)
    right = np.array([p[1] for p in partners.values() if len(p) == 2], dtype=np.int64)
    local = rng.normal(0, 1, (count, len(targets.pairs))) * targets.pair_deviations
    local[:, right] = local[:, left] + rng.normal(0, 0.05, (count, len(left)))
    local = local.clip(-1, 1)
    single = rng.uniform(0, 0.5, (count, targets.num_single)) * (rng.random((count, targets.num_single)) < 0.12)
    asymmetry = np.abs(rng.normal(0, 0.07, (count, targets.num_asymmetry)))
    macro = _sample_macro(targets.macro_keys, count, rng)
    return np.concatenate([macro, local.clip(0), (-local).clip(0), single, asymmetry], axis=1)


def _sample_macro(keys: list[tuple[str, ...]], count: int, rng: np.random.Generator) -> np.ndarray:
    child = rng.random(count) < CHILD_SHARE
    values = {
        "age": np.where(child, rng.uniform(0.2, 0.45, count), rng.uniform(0.5, 1.0, count)),
        "gender": rng.beta(0.5, 0.5, count),
        "muscle": rng.uniform(0.15, 0.85, count),
        "weight": rng.uniform(0.1, 0.9, count),
        "height": rng.uniform(0.2, 0.8, count),
        "proportions": rng.uniform(0.1, 0.8, count),
    }
    membership = dict(zip(ANCESTRIES, rng.dirichlet([0.4] * 3, count).T))
    for kind, (names, anchors) in MACRO_LEVELS.items():
        for i, name in enumerate(names):
            membership[name] = np.interp(values[kind], anchors, np.eye(len(names))[i])
    return np.stack([np.prod([membership[level] for level in key], axis=0) for key in keys], axis=1)


def principal_components(
    displacements: np.ndarray, weights: np.ndarray, importance: np.ndarray, num_components: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """PCA of weights @ displacements.

    displacements (P, V, 3), weights (N, P), importance (V,) weights the vertices in the metric.
    Returns the mean (V, 3), the basis (K, V, 3) with unit-variance coefficients, and all eigenvalues.
    """
    flat = displacements.reshape(len(displacements), -1).astype(np.float64)
    scaled = flat * np.repeat(importance, 3)
    centered = weights - weights.mean(0)
    covariance = centered.T @ centered / (len(weights) - 1)
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(0))  # covariance = root @ root.T
    energy, rotation = np.linalg.eigh(root.T @ (scaled @ scaled.T) @ root)
    order = np.argsort(energy)[::-1]
    basis = (root @ rotation[:, order[:num_components]]).T @ flat
    # Eigenvectors have no sign: fix it so that rebaking gives the same model.
    sign = np.sign(basis[np.arange(len(basis)), np.abs(basis).argmax(1)])
    shape = displacements.shape[1:]
    return (weights.mean(0) @ flat).reshape(shape), (basis * sign[:, None]).reshape(-1, *shape), energy[order]
