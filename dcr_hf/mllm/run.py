"""A multimodal run: models x benchmarks -> replies, scores, tables, the report."""

from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState

from dcr_hf.evaluation.compare import collect
from dcr_hf.evaluation.embedding.identity import run_facts
from dcr_hf.evaluation.report.page import write_outputs
from dcr_hf.evaluation.scoring.results import Results, slug, write_rows
from dcr_hf.evaluation.scoring.scores import Scored
from dcr_hf.mllm.benchmarks import BENCHMARKS, predict
from dcr_hf.mllm.figures import changed_items, radar_sections
from dcr_hf.mllm.inputs import TEMPLATE
from dcr_hf.mllm.model import Answerer
from dcr_hf.mllm.questions import QuestionSet
from dcr_hf.mllm.replies import ask
from dcr_hf.mllm.tables import make_tables, unparsed_tables
from dcr_hf.models.float32 import full_float32


@full_float32()
def execute(
    models: Sequence[Answerer], data: dict[str, QuestionSet], output_dir: Path, cache_dir: Path, batch_size: int
) -> Results | None:
    """Ask every model all questions, without TF32; the first model is the reference.

    Each process asks a share. The main process does the rest; the others return None.

    Args:
        data: by benchmark.
    """
    state, replies = PartialState(), {}
    for model in models:
        for benchmark, questions in data.items():
            replies[model.name, benchmark] = ask(model, questions, cache_dir)
        model.release()
    if not state.is_main_process:
        return None
    results = Results(encoders={model.name: model.identity for model in models})
    for questions in data.values():
        facts = {"source": questions.source, "revision": questions.revision, "images": len(questions.images)}
        results.data[questions.title] = {**facts, "questions": len(questions.questions)}
    asked = {"benchmarks": list(data), "batch_size": batch_size, "refused": []}
    results.runs = [{**run_facts(state), **asked, "notes": {"Conversation": TEMPLATE, "Decoding": "greedy"}}]
    predictions = {
        (model, benchmark): predict(benchmark, data[benchmark], texts) for (model, benchmark), texts in replies.items()
    }
    _write_predictions(predictions, data, output_dir, results)
    collect(results, _score(predictions, data))
    changes = [
        change
        for benchmark, questions in data.items()
        for change in changed_items({model.name: predictions[model.name, benchmark] for model in models}, questions)
    ]
    tables = [*make_tables(results), *unparsed_tables(results)]
    write_outputs(results, tables, output_dir, radar_sections(results), changes)
    return results


def _score(
    predictions: dict[tuple[str, str], list[dict]], data: dict[str, QuestionSet]
) -> dict[tuple[str, str, str], Scored]:
    return {
        (model, benchmark, data[benchmark].title): BENCHMARKS[benchmark].score(data[benchmark].title, rows)
        for (model, benchmark), rows in predictions.items()
    }


def _write_predictions(
    predictions: dict[tuple[str, str], list[dict]], data: dict[str, QuestionSet], output_dir: Path, results: Results
) -> None:
    """Write predictions/MODEL-BENCHMARK.jsonl, and unparsed.jsonl: the replies that name no option."""
    unparsed = []
    for (model, benchmark), rows in predictions.items():
        path = output_dir / "predictions" / f"{slug(model, benchmark)}.jsonl"
        write_rows(path, rows)
        lost = [row for row in rows if row["prediction"] is None]
        unparsed += [{"model": model, "benchmark": benchmark, **row} for row in lost]
        facts = {"encoder": model, "benchmark": benchmark, "set": data[benchmark].title, "items": len(rows)}
        results.predictions.append({**facts, "unparsed": len(lost), "path": str(path.resolve())})
    write_rows(output_dir / "unparsed.jsonl", unparsed)
