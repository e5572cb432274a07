"""An evaluation run: encoders x benchmarks -> a folder with results, predictions, tables and the report."""

from pathlib import Path

from accelerate import PartialState

from dcr_hf.evaluation.benchmarks import BENCHMARKS
from dcr_hf.evaluation.compare import collect, mean_clustering, score_predictions
from dcr_hf.evaluation.embedding.embed import DiskEmbedder
from dcr_hf.evaluation.embedding.identity import run_facts
from dcr_hf.evaluation.plan import Plan, Prepared
from dcr_hf.evaluation.readers.image_sets import LabeledImages, PairedImages
from dcr_hf.evaluation.report.maps import easiest_to_see, write_map, write_thumbnails
from dcr_hf.evaluation.report.page import write_outputs
from dcr_hf.evaluation.report.summary import make_tables
from dcr_hf.evaluation.scoring.results import Results, merge, slug, write_rows
from dcr_hf.evaluation.scoring.scores import Scored
from dcr_hf.models.float32 import full_float32

DECODED = 2**30  # bytes of decoded images that are held while several encoders are measured


@full_float32()
def execute(
    prepared: Prepared,
    output_dir: Path,
    cache_dir: Path,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    batch_size: int = 64,
    workers: int = 2,
    page: bool = True,
) -> Results | None:
    """Measure and write everything, without TF32; the first encoder is the reference.

    Without `page`, neither the report to look at nor its maps and thumbnails are made: results and predictions alone.
    Each process embeds a share of the images. The main process does the rest; the others return None.
    """
    state, plans = PartialState(), prepared.plans
    embedder = DiskEmbedder(cache_dir, batch_size, workers, keep=DECODED if len(prepared.encoders) > 1 else 0)
    for encoder in prepared.encoders:
        for data in {plan.data.title: plan.data for plan in plans if plan.encoder is encoder}.values():
            embedder.embed(encoder, data)
        encoder.release()
    embedder.forget()
    if not state.is_main_process:
        return None
    results = Results(encoders={encoder.name: encoder.identity for encoder in prepared.encoders})
    for data in (plan.data for plan in plans):
        results.data[data.title] = {"source": data.source, "revision": data.revision, "images": len(data.images)}
    results.runs = [_facts(prepared, seeds, batch_size, state)]
    scored = {}
    for encoder in prepared.encoders:
        for plan in (plan for plan in plans if plan.encoder is encoder):
            scored[encoder.name, plan.benchmark, plan.data.name] = _measure(plan, embedder, seeds, output_dir, results)
        encoder.release()
    collect(results, {**scored, **mean_clustering(scored)})
    if not page:
        results.write(output_dir)
        return results
    _illustrate(plans, embedder, output_dir, results)
    write_outputs(results, make_tables(results), output_dir)
    return results


def compare_runs(paths: list[Path], output_dir: Path) -> Results:
    """Merge runs into one table, with paired tests of encoders that were measured on the same items."""
    results = merge(paths)
    scored = score_predictions(results)
    collect(results, {**scored, **mean_clustering(scored)})
    write_outputs(results, make_tables(results), output_dir)
    return results


def _measure(plan: Plan, embedder: DiskEmbedder, seeds: tuple[int, ...], output_dir: Path, results: Results) -> Scored:
    benchmark, encoder, data = BENCHMARKS[plan.benchmark], plan.encoder, plan.data
    rows = benchmark.predict(embedder.embeddings(encoder, data), data, plan.feature, list(seeds))
    path = output_dir / "predictions" / f"{slug(encoder.name, plan.benchmark, data.name)}.jsonl"
    write_rows(path, rows)
    results.predictions.append(
        {
            "encoder": encoder.name,
            "benchmark": plan.benchmark,
            "set": data.name,
            "feature": plan.feature,
            "seeds": list(seeds),
            "path": str(path.resolve()),
        }
    )
    scored = benchmark.score(data.name, rows)
    scored.feature = plan.feature
    return scored


def _illustrate(plans: list[Plan], embedder: DiskEmbedder, output_dir: Path, results: Results) -> None:
    labelled = [plan.data for plan in plans if isinstance(plan.data, LabeledImages)]
    shown = easiest_to_see(labelled, {plan.data.title for plan in plans if plan.benchmark == "clustering"})
    if shown is not None:
        for plan in {plan.encoder.name: plan for plan in plans if plan.data is shown}.values():
            path = output_dir / "maps" / f"{slug(plan.encoder.name, shown.title)}.json"
            write_map(path, embedder.embeddings(plan.encoder, shown), shown, plan.feature)
            facts = {"encoder": plan.encoder.name, "set": shown.title, "feature": plan.feature}
            results.maps.append({**facts, "path": str(path.resolve())})
    for data in {plan.data.name: plan.data for plan in plans if isinstance(plan.data, PairedImages)}.values():
        folder = output_dir / "thumbnails" / slug(data.name)
        write_thumbnails(folder, data.images)
        results.thumbnails.append(str(folder.resolve()))


def _facts(prepared: Prepared, seeds: tuple[int, ...], batch_size: int, state: PartialState) -> dict:
    asked = {"benchmarks": prepared.benchmarks, "seeds": list(seeds), "batch_size": batch_size}
    return {**run_facts(state), **asked, "refused": prepared.refused}
