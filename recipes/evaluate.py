"""Measure encoders: P-Ability, D-Ability, zero-shot, linear probes, retrieval. Every prediction is kept.

    python recipes/evaluate.py --encoders original=openai/clip-vit-large-patch14 dcr=OUT/clip-vit-large-patch14-dcr \
        --benchmarks mmvp_vlm clustering zeroshot:cifar10 retrieval --data_root DATA --output_dir REPORT

On several devices: `accelerate launch recipes/evaluate.py ...`. Several runs in one table:

    python recipes/evaluate.py --compare A/results.json B/results.json --output_dir BOTH

Benchmarks, data layouts and the files that come out: docs/evaluation.md.
"""

from dcr_hf.evaluation.cli import main

if __name__ == "__main__":
    main()
