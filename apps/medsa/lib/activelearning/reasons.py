"""Why a case is offered, in words that an annotator reads."""

import numpy as np

from lib.activelearning.pool import Pool
from lib.activelearning.ranking import Ranked

HIGH = 0.6  # as a share of the cases that have less of it
UNLIKE, DIFFERENT = 1.25, 0.9  # distances to what is labelled, in medians
PLACES = {
    "border": "uncertain at the border of {label}",
    "entropy": "uncertain inside {label}",
    "disagreement": "what it finds of {label} changes when the image is changed a little",
}


def reason_of(ranked: Ranked, pool: Pool) -> str:
    """One sentence without its full stop."""
    match ranked.why:
        case "cold":
            return (
                f"typical of images that no labelled one stands for ({ranked.parts['coverage']:.0%} of all); "
                "too little is labelled to go by what the model is unsure of"
            )
        case "uncertain":
            return ", ".join(filter(None, (_where(ranked, pool), _unlike(ranked, pool))))
        case "entropy":
            return f"{ranked.parts['entropy']:.2f} bits of entropy on average"
        case "diverse":
            return "farthest from all that is labelled" if ranked.parts else "the most typical of all"
        case "foreground":
            return f"any case in which {ranked.label} is expected"
        case "random":
            return "any case, all equally likely"
        case "later":
            return "behind the most promising ones, which others have"
        case "first":
            return "the first by name"
        case _:
            return "not scored yet; such cases come in an order that is fixed"


def why_none(images: int, unlabelled: int, unreadable: int) -> str:
    """Why nobody can be given a case, as one sentence; `unreadable` counts unlabelled ones."""
    if images == 0:
        return "There is no image here."
    if unlabelled == 0:
        return f"All images have a label ({images})."
    said = f"No unlabelled case is free: of {unlabelled}, {unlabelled - unreadable} are offered to others"
    return f"{said} and {unreadable} cannot be read." if unreadable else f"{said}."


def _where(ranked: Ranked, pool: Pool) -> str:
    """The measure by which the case stands out most among the others, and by how much."""
    label = pool.labels.index(ranked.label) if ranked.label in pool.labels else 0
    columns = {"border": pool.border, "entropy": pool.entropy, "disagreement": pool.disagreement}
    shares = {name: _share_below(column[:, label], ranked.parts[name]) for name, column in columns.items()}
    name = max(shares, key=lambda one: shares[one])
    said = PLACES[name].format(label=ranked.label)
    if shares[name] < HIGH:
        return f"no surer of {ranked.label} than of others"
    return f"{said} (more than in {shares[name]:.0%} of the cases)"


def _share_below(values: np.ndarray, value: float) -> float:
    known = values[~np.isnan(values)]
    return float((known < value).mean()) if len(known) else 0.0


def _unlike(ranked: Ranked, pool: Pool) -> str:
    if not (pool.labelled & pool.described).any():
        return ""
    distance = ranked.parts.get("distance", 0.0)
    if distance >= UNLIKE:
        return "unlike anything labelled yet"
    return "different from what is labelled" if distance >= DIFFERENT else ""
