"""The paper's two abilities and the other headline numbers of a results folder."""

from dcr_hf.evaluation.scoring.results import Results

P_ABILITY, D_ABILITY = "P-Ability", "D-Ability"
# The metric of each benchmark that stands for it.
METRICS = {
    "mmvp_vlm": "pair_accuracy",
    "clustering": "nmi",
    "zeroshot": "acc1",
    "linear_probe": "acc1",
    "retrieval": "text_to_image_recall@5",
}


def numbers(results: Results) -> dict[str, tuple[str, str, str]]:
    """{title: (benchmark, dataset, metric)}: both abilities first, then all other scores.

    P-Ability is the share of pairs of the first set of pairs; D-Ability is NMI on the one clustering set, or the mean
    over several. Further sets of either go by their names.
    """
    scores = list(dict.fromkeys((row["benchmark"], row["dataset"], row["metric"]) for row in results.results))
    clustered = [dataset for benchmark, dataset, _ in scores if benchmark == "clustering"]
    found = {}
    if any(benchmark == "mmvp_vlm" for benchmark, _, _ in scores):
        found[P_ABILITY] = ("mmvp_vlm", "all", METRICS["mmvp_vlm"])
    if clustered:
        found[D_ABILITY] = ("clustering", "mean" if "mean" in clustered else clustered[0], METRICS["clustering"])
    for benchmark, dataset, metric in scores:
        several = benchmark == "clustering" and len(set(clustered)) > 1
        if (benchmark not in ("mmvp_vlm", "clustering") or several) and metric == METRICS[benchmark]:
            if (benchmark, dataset, metric) not in found.values():
                found[f"{benchmark} {dataset}"] = (benchmark, dataset, metric)
    return found


def measured(results: Results, encoder: str) -> dict[str, dict[str, float]]:
    """{title: {"value", "change", "low", "high", "p"}}: an encoder's numbers, and their changes against the first
    encoder's with 95 % intervals over paired items; fractions of 1. The first encoder itself has changes of 0."""
    key = ("encoder", "benchmark", "dataset", "metric")
    values = {tuple(row[part] for part in key): row["value"] for row in results.results}
    changes = {tuple(row[part] for part in key): row for row in results.comparisons}
    found = {}
    for title, score in numbers(results).items():
        row = changes.get((encoder, *score), {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0})
        found[title] = {"value": values[encoder, *score], "change": row["difference"]}
        found[title] |= {part: row[part] for part in ("low", "high", "p")}
    return found
