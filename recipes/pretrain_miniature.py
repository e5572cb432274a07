"""Pretrain the miniature: a small CLIP and a small Stable Diffusion on drawn scenes, from nothing.

    python recipes/pretrain_miniature.py --size mini --output_dir out/pretrained --seed 0

resumes where it stopped when it is called again. With --check it also says whether the testbed is sound: that each
attribute can be learnt, that the CLIP is neither blind nor perfect, that the denoiser listens to its condition.
docs/miniature.md has what came of it.
"""

from dcr_hf.miniature.cli import main

if __name__ == "__main__":
    main()
