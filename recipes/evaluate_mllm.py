"""Measure LLaVA-1.5 models: MMVP, NaturalBench, CV-Bench. Every reply is kept; a killed run resumes.

    python recipes/evaluate_mllm.py --models original=llava-hf/llava-1.5-7b-hf dcr=out/llava15/llava \
        --benchmarks mmvp naturalbench cv_bench --data_root DATA --output_dir REPORT

On several devices: `accelerate launch recipes/evaluate_mllm.py ...`. Data layouts, rules and the files that come out:
docs/mllm.md.
"""

from dcr_hf.mllm.cli import main

if __name__ == "__main__":
    main()
