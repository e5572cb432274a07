"""What the benchmarks write: JSON, a Markdown table, a plot; each with the device and the versions."""

import json
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch

GIB = 2**30
# Dense bf16, tera-operations a second, from the makers' data sheets; by a part of the device's name.
BF16_PEAK = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "4090": 165}

COLUMNS = (
    *("step", "B", "s a step", "speed-up", "peak GiB", "memory", "10^12 operations", "of matmul rate"),
    *("of data sheet", "loss difference", "chunks"),
)


def device_facts(device: torch.device) -> dict[str, str | float | None]:
    """Device, versions, and the rate of matrix products: the data sheet's and the one measured now."""
    cuda = device.type == "cuda"
    name = (
        torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
    )
    return {
        "device": name,
        "dtype": "bfloat16" if cuda else "float32",
        **{package: version(package) for package in ("torch", "diffusers", "transformers")},
        "data_sheet_tera_operations_per_second": next((p for key, p in BF16_PEAK.items() if key in name), None),
        "matmul_tera_operations_per_second": matmul_rate(device),
    }


def matmul_rate(device: torch.device) -> float:
    """Tera-operations a second of one large matrix product, the best of several."""
    cuda = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if cuda else (2048, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype)
    best, clock = 0.0, time.perf_counter if cuda else time.process_time
    for _ in range(10):
        start = clock()
        a @ a
        if cuda:
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (clock() - start) / 1e12)
    return best


def save(folder: Path, facts: dict, rows: list[dict], swept: list[dict]) -> str:
    """Write step.json and step.md; return the Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.json").write_text(json.dumps({"facts": facts, "rows": rows, "sweep": swept}, indent=2) + "\n")
    text = f"{_describe(facts)}\n\n{markdown(rows, facts)}"
    (folder / "step.md").write_text(text)
    return text


def _describe(facts: dict) -> str:
    return (
        f"{facts['device']}, {facts['dtype']}, torch {facts['torch']}, diffusers {facts['diffusers']}, transformers "
        f"{facts['transformers']}; UNet {facts['sd']}, encoder {facts['encoder']}, {facts['image_size']} px."
    )


def markdown(rows: list[dict], facts: dict) -> str:
    """A line a way; times and memory also as multiples of the first way's."""
    first = rows[0]
    lines = [
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        if row["failed"]:
            failed = row["failed"].replace("|", "/").replace("\n", " ")  # a torch error has several lines
            lines.append(f"| {row['name']} | {row['batch']} | {failed}{' |' * (len(COLUMNS) - 2)}")
            continue
        rate = row["tera_operations"] and row["tera_operations"] / row["seconds"]
        shares = [facts["matmul_tera_operations_per_second"], facts["data_sheet_tera_operations_per_second"]]
        cells = [
            row["name"] + (f" ({row['note']})" if row["note"] else ""),
            row["batch"],
            f"{row['seconds']:.2f}",
            f"{first['seconds'] / row['seconds']:.2f}x" if first["seconds"] else "",
            f"{row['peak_bytes'] / GIB:.2f}" if row["peak_bytes"] else "",
            f"{row['peak_bytes'] / first['peak_bytes']:.2f}x" if row["peak_bytes"] and first["peak_bytes"] else "",
            f"{row['tera_operations']:.2f}" if row["tera_operations"] else "",
            *(f"{rate / peak:.0%}" if rate and peak else "" for peak in shares),
            "" if row["relative_loss_difference"] is None else f"{row['relative_loss_difference']:.0e}",
            "; ".join(f"{size}, {kept} kept" for size, kept in row["plan"] or ()),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def plot_sweep(path: Path, swept: list[dict], facts: dict) -> None:
    """Time and peak memory over the chunk size (left) and over B (right)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chunks, batches = sweep_lines(swept, int(facts["batch"]))
    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    quantities = [("seconds", 1, "s a step"), ("peak_bytes", GIB, "peak GiB")]
    for line, (quantity, unit, label) in enumerate(quantities):
        left, right = axes[line]
        left.plot(list(chunks), [row[quantity] / unit for row in chunks.values()], "o-", color="C0")
        left.set(ylabel=label, xlabel="pairs a chunk" if line else "", ylim=0)
        for color, (title, rows) in enumerate(batches.items()):
            right.plot(
                list(rows), [row[quantity] / unit for row in rows.values()], "o-", color=f"C{color}", label=title
            )
        right.set(xlabel="B, images" if line else "", ylim=0)
    axes[0, 0].set_title(f"B = {facts['batch']}")
    axes[0, 1].set_title("over the batch size")
    axes[0, 1].legend()
    figure.suptitle(_describe(facts), fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def sweep_lines(swept: list[dict], batch: int) -> tuple[dict[str, dict], dict[str, dict[int, dict]]]:
    """Rows that did not fail: of our steps with `batch` images by chunk size; of three ways by B, each in order."""
    done = [row for row in swept if not row["failed"]]
    ours = {int(row["chunk"]): row for row in done if row["chunk"] != "-" and row["batch"] == batch}
    chunks = {str(chunk or "all"): ours[chunk] for chunk in sorted(ours, key=lambda chunk: chunk or 10**9)}
    ways = {"ours, all at once": "0", "ours, chunks of 32": "32", "released manner": "-"}
    of_way = {title: {row["batch"]: row for row in done if row["chunk"] == chunk} for title, chunk in ways.items()}
    return chunks, {title: dict(sorted(rows.items())) for title, rows in of_way.items()}
