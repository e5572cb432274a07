"""Pairs that a CLIP finds alike, as MMVP's are: chosen by looking at them, or by what it finds alike elsewhere.

MMVP's pairs were chosen because CLIP gives their images similar embeddings. Some of that is chance: an encoder that
is moved in any direction is likely to see such pairs better, without having learnt a thing. `ALIKE` is chosen in the
same way, by the similarity of the pairs themselves. `BLIND` is chosen without looking at them: what makes a pair hard
is learnt from other scenes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from torch.nn import functional as F

from dcr_hf.evaluation.embedding.inputs import ImageProcessor
from dcr_hf.hub import local_folder
from dcr_hf.miniature.drawing import look_of
from dcr_hf.miniature.layouts import draw_scenes, pairs, write_pairs
from dcr_hf.miniature.scenes import ATTRIBUTES, SHAPES, Attribute, Scene
from dcr_hf.models.loading import load_dual_encoder
from dcr_hf.models.reading import read_json

ALIKE, BLIND = "scene_alike_pairs", "scene_blind_pairs"
POOL = 500  # pairs of each pattern to choose from
_ALIKE_SEED, _BLIND_SEED = 1000, 2000  # added to the draw's: the pools share no scene, and none with other pairs
MARK = "hard_pairs.json"

Pair = tuple[Attribute, Scene, Scene]


def write_hard_pairs(
    root: Path, encoder: str, draw: str, per_category: int, size: int, seed: int = 0, pool: int = POOL
) -> dict[str, float]:
    """Write the folders ALIKE and BLIND below `root`, for one encoder; what is there for it is left as it is.

    Args:
        encoder: by whose similarity; a folder or hub id.
        per_category, pool: how many pairs of each of the nine patterns are kept, and of how many.

    Returns:
        {"all", ALIKE, BLIND}: the encoder's mean cosine between the two images of a pair, over the pool and over what
        was chosen.
    """
    wanted = {"encoder": encoder, "draw": draw, "pairs": per_category, "size": size, "seed": seed, "pool": pool}
    mark = root / MARK
    if mark.is_file() and (found := read_json("drawn pairs", mark))["wanted"] == wanted:
        return found["cosines"]
    seen = list(pairs(draw, pool, seed + _ALIKE_SEED))
    cosines = similarities(encoder, seen, size)
    unseen = list(pairs(draw, pool, seed + _BLIND_SEED))
    chosen = {
        ALIKE: _most(seen, cosines, per_category),
        BLIND: _most(unseen, predict_similarities(seen, cosines, unseen), per_category),
    }
    means = {"all": float(cosines.mean())}
    for name, some in chosen.items():
        write_pairs(root / name, some, size)
        means[name] = float(similarities(encoder, some, size).mean())
    mark.write_text(json.dumps({"wanted": wanted, "cosines": means}, indent=1) + "\n", encoding="utf-8")
    return means


@torch.inference_mode()
def similarities(encoder: str, some: list[Pair], size: int) -> np.ndarray:
    """(N,), the cosine between the encoder's embeddings of the two images of each pair."""
    scenes = [scene for _, *both in some for scene in both]
    pixels = torch.from_numpy(draw_scenes(scenes, size, "pairs to choose from")).permute(0, 3, 1, 2)
    processor = ImageProcessor(f"encoder {encoder}", str(local_folder(encoder)), size)
    model: Any = load_dual_encoder(encoder)
    embeddings = torch.cat(
        [
            model.get_image_features(pixel_values=processor.to_pixel_values(part)).pooler_output
            for part in pixels.split(500)
        ]
    )
    return F.cosine_similarity(embeddings[::2], embeddings[1::2], dim=-1).numpy()


def predict_similarities(seen: list[Pair], cosines: np.ndarray, unseen: list[Pair]) -> np.ndarray:
    """The cosines of `unseen` pairs by what was drawn, as a regression on `seen` ones has it: one for each pattern."""
    predicted = np.empty(len(unseen))
    for attribute in ATTRIBUTES:
        of_seen, of_unseen = (
            [row for row, pair in enumerate(some) if pair[0] == attribute] for some in (seen, unseen)
        )
        model = HistGradientBoostingRegressor(random_state=0)
        model.fit(np.array([features(seen[row]) for row in of_seen]), cosines[of_seen])
        predicted[of_unseen] = model.predict(np.array([features(unseen[row]) for row in of_unseen]))
    return predicted


def features(pair: Pair) -> list[float]:
    """What a pair shows, as numbers: classes, values of all attributes, and how it is drawn."""
    attribute, scene, other = pair
    look = look_of(scene)
    values = [each.values.index(getattr(scene, each.name)) for each in ATTRIBUTES]
    values += [attribute.values.index(getattr(other, attribute.name)), SHAPES.index(scene.shape)]
    values += [SHAPES.index(look.towards)]
    drawn = [*look.center, look.stretch[0], look.turn, look.lean, look.hue, look.brightness, *look.moved]
    return [*map(float, values), *map(float, drawn), *look.strength.values()]


def _most(some: list[Pair], scores: np.ndarray, count: int) -> list[Pair]:
    """The pairs of each pattern with the highest scores."""
    chosen = []
    for attribute in ATTRIBUTES:
        rows = [row for row, pair in enumerate(some) if pair[0] == attribute]
        chosen += [some[row] for row in sorted(rows, key=lambda row: -scores[row])[:count]]
    return chosen
