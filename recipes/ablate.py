"""The paper's comparison: reconstruction, contrast, their naive sum, one stage, DCR; on the miniature or your data.

    python recipes/ablate.py --variants original reconstruction contrastive joint end_to_end dcr --seeds 0 1 2

trains, exports and measures each on the same data and budget, and reports which of the paper's claims hold. The same
command resumes a killed run. --encoder, --denoiser, --train_data, --data_root and --benchmarks name your own.
"""

from dcr_hf.ablation.cli import main

if __name__ == "__main__":
    main()
