"""The multimodal benchmarks by name: how to read them, judge a reply, and score."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dcr_hf.errors import UserError
from dcr_hf.evaluation.scoring.scores import Scored
from dcr_hf.mllm.cv_bench import read_cv_bench, score_cv_bench
from dcr_hf.mllm.mmvp import judge_option, read_mmvp_questions, score_mmvp
from dcr_hf.mllm.naturalbench import judge_word, read_naturalbench, score_naturalbench
from dcr_hf.mllm.questions import QuestionSet


@dataclass(frozen=True)
class Benchmark:
    """Attributes:
    hub_id: its hub id; the last part, or the benchmark's name, is the folder below --data_root.
    read: (name, hub id, data root or None) -> the questions.
    judge: (a question's facts, reply) -> the chosen option, to compare with `answer`; None if there is none.
    score: (set name, rows) -> scores. A row is a prediction: item, image, prompt, the facts, reply, prediction,
        correct.
    """

    hub_id: str
    read: Callable[[str, str, Path | None], QuestionSet]
    judge: Callable[[dict, str], str | None]
    score: Callable[[str, list[dict]], Scored]


BENCHMARKS = {
    "mmvp": Benchmark("MMVP/MMVP", read_mmvp_questions, judge_option, score_mmvp),
    "naturalbench": Benchmark("BaiqiL/NaturalBench", read_naturalbench, judge_word, score_naturalbench),
    "cv_bench": Benchmark("nyu-visionx/CV-Bench", read_cv_bench, judge_option, score_cv_bench),
}


def read_benchmarks(names: list[str], data_root: Path | None) -> dict[str, QuestionSet]:
    """Read each benchmark once, in the given order.

    Raises:
        UserError: an unknown benchmark, or broken data.
        NotFoundError: missing data.
    """
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise UserError(f"unknown benchmark {unknown[0]!r}; known: {', '.join(BENCHMARKS)}")
    return {name: BENCHMARKS[name].read(name, BENCHMARKS[name].hub_id, data_root) for name in dict.fromkeys(names)}


def predict(benchmark: str, data: QuestionSet, replies: dict[str, str]) -> list[dict]:
    """One row per question, from which every score can be computed again."""
    rows = []
    for question in data.questions:
        reply = replies[question.item]
        prediction = BENCHMARKS[benchmark].judge(question.facts, reply)
        rows.append(
            {
                "item": question.item,
                "image": data.images.name(question.image),
                "prompt": question.prompt,
                **question.facts,
                "reply": reply,
                "prediction": prediction,
                "correct": prediction == question.facts["answer"],
            }
        )
    return rows
