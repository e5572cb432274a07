import itertools
import json
from collections import Counter
from pathlib import Path

import datasets
import pytest
import torch
from conftest import encoded, photographs, write_shard
from torch.utils.data import DataLoader

from dcr_hf.data import TrainingImages, collate, describe_skipped
from dcr_hf.sources import TableSource, expand_braces, find_source


@pytest.fixture(scope="module")
def photos():
    return [encoded(image) for image in photographs(60, side=40)]


@pytest.fixture(scope="module")
def clean_shards(tmp_path_factory, photos):
    """Three shards of 20."""
    folder = tmp_path_factory.mktemp("clean")
    for shard in range(3):
        write_shard(folder / f"{shard:05d}.tar", {f"{shard:05d}{i:04d}": photos[shard * 20 + i] for i in range(20)})
    return folder


def stream(source, batch_size=2, **options):
    return TrainingImages(find_source(str(source)), 32, batch_size, **options)


def keys(items):
    return [item["key"] for item in items]


def epoch_keys(source, epoch, rank, world_size, workers):
    """One epoch's keys of one rank, read by a DataLoader with that many workers."""
    rows = find_source(str(source)).epoch(7, epoch, rank, world_size, world_size * max(1, workers))
    return [row["key"] for row in DataLoader(rows, batch_size=None, num_workers=workers)]


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_and_workers_read_disjoint_images_that_are_all_there_are(clean_shards, world_size, workers):
    every_rank = [epoch_keys(clean_shards, 0, rank, world_size, workers) for rank in range(world_size)]
    assert all(every_rank)
    counts = Counter(itertools.chain(*every_rank))
    assert len(counts) == 60 and set(counts.values()) == {1}


def test_shards_are_dealt_in_another_order_each_epoch(clean_shards):
    orders = {tuple(epoch_keys(clean_shards, epoch, 0, 1, 0)) for epoch in range(8)}
    assert len(orders) > 2
    assert len({frozenset(order) for order in orders}) == 1


def test_the_stream_repeats_by_seed_and_differs_between_seeds(clean_shards):
    take = lambda seed: list(itertools.islice(stream(clean_shards, seed=seed), 100))  # noqa: E731
    first, again, other = take(0), take(0), take(1)
    assert keys(first) == keys(again) != keys(other)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))


def test_blocks_are_shuffled_and_crops_differ_between_epochs(clean_shards):
    items = list(itertools.islice(stream(clean_shards, shuffle_buffer=20), 120))
    first, second = items[:60], items[60:]
    assert set(keys(first)) == set(keys(second)) and len(set(keys(first))) == 60
    assert keys(first) != keys(second)
    assert keys(first) != sorted(keys(first))
    image_of = {item["key"]: item["image"] for item in second}
    assert any(not torch.equal(item["image"], image_of[item["key"]]) for item in first)


def test_a_batch_never_mixes_epochs_and_the_rest_is_dropped(clean_shards):
    items = list(itertools.islice(stream(clean_shards, batch_size=8), 7 * 8 * 3))
    for epoch in range(3):
        assert len(set(keys(items[epoch * 56 : (epoch + 1) * 56]))) == 56  # 60 images fill 7 batches of 8
    dropped = [set(keys(items)) - set(keys(items[epoch * 56 : (epoch + 1) * 56])) for epoch in range(3)]
    assert len(set.union(*dropped)) > 4  # others each time


def test_batches_are_images_in_the_unit_interval(clean_shards):
    loader = DataLoader(stream(clean_shards, batch_size=4), batch_size=4, collate_fn=collate)
    batch = next(iter(loader))
    assert batch["images"].shape == (4, 3, 32, 32) and batch["images"].dtype == torch.float32
    assert 0 <= batch["images"].min() < 0.3 < 0.7 < batch["images"].max() <= 1
    assert len(set(batch["keys"])) == 4 and batch["skipped"] == []


@pytest.fixture(scope="module")
def broken_shards(tmp_path_factory, photos):
    """24 samples, 4 of which cannot be used; one has no caption, which is no fault."""
    folder = tmp_path_factory.mktemp("broken")
    samples = {f"00000{i:04d}": photos[i] for i in range(24)}
    samples["000000002"] = photos[2][: len(photos[2]) // 2]
    samples["000000005"] = {"jpg": b"<html>gone</html>", "txt": b"x"}
    samples["000000007"] = b""
    samples["000000011"] = photos[11][: len(photos[11]) // 3]
    samples["000000013"] = {"jpg": photos[13], "txt": b""}
    samples["000000014"] = {"txt": b"no image was downloaded"}
    write_shard(folder / "00000.tar", samples)
    return folder


def test_what_cannot_be_used_is_skipped_and_counted_by_reason(broken_shards):
    items = list(itertools.islice(stream(broken_shards, batch_size=19), 19 * 2))
    skipped = [entry for item in items for entry in item["skipped"]]
    # The last of the first epoch's four may come after its last whole batch: then it is told with the second's.
    assert Counter(reason for reason, _ in skipped[:4]) == {"truncated": 2, "not an image": 1, "empty": 1}
    assert {key for _, key in skipped} == {"000000002", "000000005", "000000007", "000000011"}
    assert "000000013" in keys(items) and "000000014" not in keys(items)
    assert not {key for _, key in skipped} & set(keys(items))


def test_too_many_bad_images_end_the_run_with_examples(broken_shards):
    with pytest.raises(ValueError, match=r"of the last 1000 .* 0\.1: .*truncated \(0000000.*Is --train_data"):
        list(itertools.islice(stream(broken_shards), 5000))
    assert len(list(itertools.islice(stream(broken_shards, max_bad_fraction=0.2), 2000))) == 2000


def test_data_with_no_usable_image_ends_at_once(tmp_path):
    write_shard(tmp_path / "00000.tar", {f"00000{i:04d}": b"<html></html>" for i in range(5)})
    with pytest.raises(ValueError, match=r"0 usable images .* 5 not an image \(000000"):
        next(iter(stream(tmp_path)))


def test_a_share_smaller_than_a_batch_is_an_error_that_says_what_to_do(clean_shards):
    with pytest.raises(ValueError, match=r"rank 1 .* 20 usable images .*2 ranks with 1 readers.*lower"):
        for rank in (0, 1):
            next(iter(stream(clean_shards, batch_size=32, rank=rank, world_size=2)))


def test_an_error_in_a_worker_reaches_the_training_process(tmp_path):
    write_shard(tmp_path / "00000.tar", {f"00000{i:04d}": b"" for i in range(5)})
    loader = DataLoader(stream(tmp_path, num_workers=1), batch_size=2, collate_fn=collate, num_workers=1)
    with pytest.raises(ValueError, match="0 usable images"):
        next(iter(loader))


def test_a_tar_that_ends_in_the_middle_gives_its_whole_samples(clean_shards, tmp_path):
    content = (clean_shards / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(content[: len(content) // 2])
    items = list(itertools.islice(stream(tmp_path), 8))
    [(reason, key)] = {entry for item in items for entry in item["skipped"]} or [(None, None)]
    assert reason == "shard ends in the middle" and key.endswith("00000.tar")
    rows = list(find_source(str(tmp_path)).epoch(0, 0, 0, 1, 1))
    assert 5 < sum(row["error"] is None for row in rows) < 15


def test_a_shard_that_is_no_tar_is_refused_at_the_start(tmp_path, photos):
    write_shard(tmp_path / "00000.tar", {"000000000": photos[0]})
    (tmp_path / "00001.tar").write_bytes(b"<html>quota exceeded</html>" * 50)
    with pytest.raises(ValueError, match=r"00001\.tar is no tar file"):
        find_source(str(tmp_path))


def test_shards_without_images_are_refused_at_the_start(tmp_path):
    write_shard(tmp_path / "00000.tar", {"000000000": {"txt": b"only text"}})
    with pytest.raises(ValueError, match="holds no image"):
        find_source(str(tmp_path))


def test_an_image_folder(tmp_path, photos):
    for index, content in enumerate(photos[:70]):
        folder = tmp_path / f"class_{index % 3}"
        folder.mkdir(exist_ok=True)
        (folder / f"{index}.JPG").write_bytes(content)
    (tmp_path / "readme.txt").write_text("not an image")
    source = find_source(str(tmp_path))
    assert source.images == 60
    ranks = [keys_of_epoch for rank in (0, 1) for keys_of_epoch in [epoch_keys(tmp_path, 0, rank, 2, 0)]]
    assert sorted(Path(key).stem for key in itertools.chain(*ranks)) == sorted(str(index) for index in range(60))


def test_a_table_with_an_image_column(photos):
    rows = [{"image": {"bytes": content, "path": None}} for content in photos[:12]]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = datasets.Dataset.from_list(rows, features=features).to_iterable_dataset(num_shards=4)
    from dcr_hf.sources import table_rows

    source = TableSource(table_rows(table, "image"), 12)
    every = [row["image"] for rank in (0, 1) for row in source.epoch(0, 0, rank, 2, 2)]
    assert sorted(every) == sorted(photos[:12])
    assert next(iter(TrainingImages(source, 32, 2)))["image"].shape == (3, 32, 32)


def test_names_of_shards(clean_shards):
    shards = tuple(str(clean_shards / f"{i:05d}.tar") for i in range(3))
    assert find_source(str(clean_shards)).units == shards
    assert find_source(str(clean_shards / "*.tar")).units == shards
    assert find_source(str(clean_shards / "{00000..00002}.tar")).units == shards
    assert find_source(str(clean_shards / "{00000,00002}.tar")).units == (shards[0], shards[2])
    assert find_source(shards[1]).units == (shards[1],)
    with pytest.raises(FileNotFoundError, match=r"2 of 5 shards are missing, the first is .*00003\.tar"):
        find_source(str(clean_shards / "{00000..00004}.tar"))
    for nothing in (clean_shards / "*.tgz", clean_shards / "none.tar", "no_such_thing"):
        with pytest.raises(FileNotFoundError, match="--train_data"):
            find_source(str(nothing))


def test_braces():
    assert len(expand_braces("{00000..00331}.tar")) == 332
    assert expand_braces("{00000..00331}.tar")[-1] == "00331.tar"
    assert expand_braces("a{1..2}/{x,y}.tar") == ["a1/x.tar", "a1/y.tar", "a2/x.tar", "a2/y.tar"]
    assert expand_braces("plain.tar") == ["plain.tar"]


def test_images_are_counted_by_img2datasets_statistics_else_by_the_first_shard(clean_shards, tmp_path, photos):
    assert find_source(str(clean_shards)).images == 60
    for shard, successes in enumerate((9_321, 9_250)):
        write_shard(tmp_path / f"{shard:05d}.tar", {f"{shard:05d}0000": photos[shard]})
        (tmp_path / f"{shard:05d}_stats.json").write_text(json.dumps({"count": 10_000, "successes": successes}))
    assert find_source(str(tmp_path)).images == 18_571


def test_skipped_images_are_described_by_reason():
    skipped = [("truncated", "a"), ("empty", "b"), ("truncated", "c"), ("truncated", "d"), ("truncated", "e")]
    assert describe_skipped(skipped) == "4 truncated (a, c, d, ...), 1 empty (b)"
