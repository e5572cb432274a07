"""Ways to train DCR, side by side, on the miniature: several pretraining seeds, both kinds of denoiser.

    python recipes/experiment_miniature.py --pretrained out/pretrained0 out/pretrained1 out/pretrained2 \
        --draw dev --output_dir out/experiment

Choose on --draw dev, then read --draw test once. Killed and called again it goes on. docs/miniature.md has what came
of it.
"""

from dcr_hf.miniature.experiment import main

if __name__ == "__main__":
    main()
