"""How far bfloat16's autocast moves the conditions, with the encoder and the projector in it or beside it.

    python benchmarks/precision.py [--encoder FOLDER_OR_ID] [--images 64]

Relative errors of c against float32, on random images, for a projector as stage 1 begins with it.
"""

import argparse

import torch

from dcr_hf.miniature.layouts import TRAINING_SEED
from dcr_hf.miniature.models import CLIP_FOLDER, SHIPPED
from dcr_hf.models.condition import ConditionModel
from dcr_hf.models.encoder import ImageEncoder
from dcr_hf.models.projector import Projector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default=str(SHIPPED / CLIP_FOLDER))
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args()
    torch.manual_seed(TRAINING_SEED)
    encoder = ImageEncoder.from_pretrained(options.encoder).eval()
    projector = Projector(encoder.embedding_width, 1024)
    images = torch.rand(options.images, 3, encoder.image_size, encoder.image_size)
    with torch.no_grad():
        exact = projector(encoder(images))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = {
                "encoder and projector under autocast": projector(encoder(images)),
                "encoder under autocast, projector beside it (stage 2)": exactly(projector, encoder(images)),
                "both beside it (stage 1)": ConditionModel(encoder, projector).eval()(images).conditions,
            }
    for name, found in rounded.items():
        print(f"{(found.float() - exact).norm() / exact.norm():.1e}  {name}")


def exactly(projector: Projector, embeddings: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", enabled=False):
        return projector(embeddings.float())


if __name__ == "__main__":
    main()
