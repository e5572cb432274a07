import itertools
import json
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dcr_hf.data import readers
from dcr_hf.data.bad_images import describe_skipped
from dcr_hf.data.dealing import FileSource, TableSource
from dcr_hf.data.hub_sources import table_rows
from dcr_hf.data.sources import expand_braces, find_source
from dcr_hf.data.stream import StreamState, TrainingImages, collate
from dcr_hf.errors import UserError
from helpers.images import encoded, photographs, write_shard


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


def loader(images):
    workers = 0 if images.workers == 1 else images.workers
    return DataLoader(images, batch_size=images.batch_size, collate_fn=collate, num_workers=workers)


def first_epoch(source, world_size, workers, batch_size=1, **options):
    """The keys that each rank reads in epoch 0, by a DataLoader with that many workers."""
    keys_of_ranks = []
    for rank in range(world_size):
        images = stream(
            source, batch_size, rank=rank, world_size=world_size, num_workers=workers, shuffle_buffer=16, **options
        )
        own_lanes = range(images.state.lanes // world_size)
        read, finished = [], set()
        for batch in loader(images):
            lane, position = batch["position"]
            if position["epoch"] == 0:
                read += batch["keys"]
            else:
                finished.add(lane)
            if len(finished) == len(own_lanes):
                break
        keys_of_ranks.append(read)
    return keys_of_ranks


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_and_workers_read_disjoint_images_that_are_all_there_are(clean_shards, world_size, workers):
    every_rank = first_epoch(clean_shards, world_size, workers)  # three shards: often fewer than readers
    assert all(every_rank)
    counts = Counter(itertools.chain(*every_rank))
    assert len(counts) == 60 and set(counts.values()) == {1}


def test_shards_are_dealt_in_another_order_each_epoch(clean_shards):
    source = find_source(str(clean_shards))
    orders = {tuple(row["key"] for row in source.epoch(7, epoch, 0, 1)) for epoch in range(8)}
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
    items = list(itertools.islice(stream(clean_shards, batch_size=8), 7 * 8 * 3))  # one lane
    for epoch in range(3):
        assert len(set(keys(items[epoch * 56 : (epoch + 1) * 56]))) == 56  # 60 images fill 7 batches of 8
    dropped = [set(keys(items)) - set(keys(items[epoch * 56 : (epoch + 1) * 56])) for epoch in range(3)]
    assert len(set.union(*dropped)) > 4  # others each time


def test_batches_are_images_in_the_unit_interval(clean_shards):
    batch = next(iter(loader(stream(clean_shards, batch_size=4))))
    assert batch["images"].shape == (4, 3, 32, 32) and batch["images"].dtype == torch.float32
    assert 0 <= batch["images"].min() < 0.3 < 0.7 < batch["images"].max() <= 1
    assert len(set(batch["keys"])) == 4 and batch["skipped"] == []


@pytest.fixture(scope="module")
def broken_shards(tmp_path_factory, photos):
    """24 samples, 4 of which cannot be used; one has no caption, which is fine."""
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
    # The last of the first epoch's four may come after its last full batch: then it is reported in the second epoch.
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
    with pytest.raises(ValueError, match=r"found 0 different ones in .* 5 not an image \(000000"):
        next(iter(stream(tmp_path)))


def test_only_data_that_fills_no_batch_is_an_error_that_says_what_to_do(clean_shards):
    for rank in (0, 1):  # a share has 20 or 40 images; the rest of a batch comes from the next epoch's
        batch = next(iter(loader(stream(clean_shards, batch_size=48, rank=rank, world_size=2))))
        assert len(set(batch["keys"])) == 48
    with pytest.raises(ValueError, match=r"found 60 different ones in .* a batch is 61\. Give more data, or lower"):
        next(iter(stream(clean_shards, batch_size=61)))


@pytest.mark.parametrize("case", range(10))
def test_shards_of_any_sizes(tmp_path, photos, case):
    """No run ends for a small shard, no image comes twice in an epoch, and a resume continues with the same images."""
    draw = np.random.default_rng(case)
    sizes = [*draw.choice([0, 0, 1, 2, 3, 7, 12], size=draw.integers(2, 12)).tolist(), 12]
    draw.shuffle(sizes)
    for shard, size in enumerate(sizes):
        write_shard(tmp_path / f"{shard:05d}.tar", {f"{shard:05d}{i:04d}": photos[i] for i in range(size)})
    if case % 3 == 0:
        (tmp_path / "99999.tar").write_bytes(b"")
    if case % 4 == 0:
        content = (tmp_path / f"{sizes.index(12):05d}.tar").read_bytes()
        (tmp_path / "99998.tar").write_bytes(content[:700])
    world_size, workers = int(draw.integers(1, 4)), int(draw.choice([0, 1, 2, 3, 4]))
    options = {"world_size": world_size, "num_workers": workers, "shuffle_buffer": 8, "max_bad_fraction": 0.9}
    read, stop = [], int(draw.integers(1, 8))
    state = stream(tmp_path, 4, **options).state
    following = []
    for rank in range(world_size):
        batches = list(itertools.islice(loader(stream(tmp_path, 4, rank=rank, **options)), 14))
        assert all(len(set(batch["keys"])) == 4 for batch in batches)
        read += [key for batch in batches if batch["position"][1]["epoch"] == 0 for key in batch["keys"]]
        for batch in batches[:stop]:
            lane, state.positions[lane] = batch["position"]
        following.append([batch["keys"] for batch in batches[stop:]])
    assert len(read) == len(set(read))
    state.batches = stop
    state.write(tmp_path)
    for rank in range(world_size):
        resumed = loader(stream(tmp_path, 4, rank=rank, state=StreamState.read(tmp_path), **options))
        assert [batch["keys"] for batch in itertools.islice(resumed, 14 - stop)] == following[rank]


def test_an_image_folder_is_in_the_order_of_its_paths_as_text(tmp_path, photos):
    for name in ("a/x.jpg", "a-b/x.jpg", "b.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photos[0])
    [unit] = find_source(str(tmp_path)).units
    assert [str(Path(path).relative_to(tmp_path)) for path in unit] == ["a-b/x.jpg", "a/x.jpg", "b.jpg"]


def test_hints_and_debris_are_not_data(tmp_path, photos, caplog):
    write_shard(tmp_path / "cc3m-train-0.tar", {"a": photos[0], "._b": photos[1], "__MACOSX/c": photos[2]})
    write_shard(tmp_path / "cc3m-validation-0.tar", {"v": photos[3]})
    write_shard(tmp_path / "._cc3m-train-0.tar", {"x": photos[3]})
    (tmp_path / "cc3m-train-0_stats.json").write_text("{")
    source = find_source(str(tmp_path))
    assert [Path(unit).name for unit in source.units] == ["cc3m-train-0.tar"] and source.images == 1
    assert "cc3m-train-0_stats.json is broken" in caplog.text
    assert [row["key"] for row in source.epoch(0, 0, 0, 1)] == ["a"]


def test_a_folder_of_images_with_links_debris_and_what_cannot_be_opened(tmp_path, photos):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/linked.jpg").write_bytes(photos[0])
    folder = tmp_path / "images"
    for name in ("here.jpg", "._here.jpg", ".ipynb_checkpoints/here.jpg", "__MACOSX/here.jpg", "sub.jpg/inside.PNG"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photos[1])
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "sub.jpg/up").symlink_to(folder)  # a circle
    (folder / "nothing.jpg").symlink_to(tmp_path / "not_there")
    rows = {Path(row["key"]).name: row["error"] for row in find_source(str(folder)).epoch(0, 0, 0, 1)}
    assert rows.pop("nothing.jpg") == "cannot be opened (No such file or directory)"
    assert rows == {"here.jpg": None, "inside.PNG": None, "linked.jpg": None}


def test_an_error_in_a_worker_reaches_the_training_process(tmp_path):
    write_shard(tmp_path / "00000.tar", {f"00000{i:04d}": b"" for i in range(5)})
    images = stream(tmp_path, num_workers=2)
    with pytest.raises(ValueError, match="found 0 different ones"):
        next(iter(loader(images)))


def test_a_tar_that_ends_in_the_middle_gives_its_whole_samples(clean_shards, tmp_path):
    content = (clean_shards / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(content[: len(content) // 2])
    items = list(itertools.islice(stream(tmp_path), 8))
    [(reason, key)] = {entry for item in items for entry in item["skipped"]} or [(None, None)]
    assert reason == "shard ends in the middle" and key.endswith("00000.tar")
    rows = list(find_source(str(tmp_path)).epoch(0, 0, 0, 1))
    assert 5 < sum(row["error"] is None for row in rows) < 15


def test_a_shard_that_is_no_tar_is_refused_at_the_start(tmp_path, photos):
    write_shard(tmp_path / "00000.tar", {"000000000": photos[0]})
    (tmp_path / "00001.tar").write_bytes(b"<html>quota exceeded</html>" * 50)
    with pytest.raises(ValueError, match=r"00001\.tar is not an \(uncompressed\) tar file"):
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
    ranks = first_epoch(tmp_path, world_size=2, workers=0)
    assert sorted(Path(key).stem for key in itertools.chain(*ranks)) == sorted(str(index) for index in range(60))


def test_a_table_with_an_image_column(photos):
    rows = [{"image": {"bytes": content, "path": None}} for content in photos[:12]]
    features = datasets.Features({"image": datasets.Image(decode=False)})
    table = datasets.Dataset.from_list(rows, features=features).to_iterable_dataset(num_shards=4)
    source = TableSource(table_rows(table, "image"), 12)
    every = [row["image"] for lane in (0, 1) for row in source.epoch(0, 0, lane, 2)]
    assert sorted(every) == sorted(photos[:12])
    assert next(iter(TrainingImages(source, 32, 2)))["image"].shape == (3, 32, 32)


class Unread:
    """A file that fails the test when something before `start` is read."""

    def __init__(self, file, start):
        self.file, self.start = file, start

    def seek(self, *args):
        return self.file.seek(*args)

    def read(self, *args):
        assert self.file.tell() >= self.start
        return self.file.read(*args)

    def __enter__(self):
        return self

    def __exit__(self, *args):
        self.file.close()


@pytest.mark.parametrize("stop", [1, 7, 13, 28, 64])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_resumes_where_it_stopped(broken_shards, clean_shards, workers, stop, tmp_path):
    """Bit by bit, by DataLoader, from a state that went through a file; with bad images and several epochs."""
    for shard in (*clean_shards.glob("*.tar"), broken_shards / "00000.tar"):
        (tmp_path / f"{shard.parent.name}-{shard.name}").symlink_to(shard)
    options = {"num_workers": workers, "shuffle_buffer": 12, "max_bad_fraction": 0.9}
    uninterrupted = list(itertools.islice(loader(stream(tmp_path, 3, **options)), 80))

    images = stream(tmp_path, 3, **options)
    state = images.state
    for batch in itertools.islice(loader(images), stop):
        lane, position = batch["position"]
        state.positions[lane] = position
        state.batches += 1
    state.write(tmp_path)
    resumed = stream(tmp_path, 3, state=StreamState.read(tmp_path), **options)
    for expected, found in zip(uninterrupted[stop:], loader(resumed), strict=False):
        assert found["keys"] == expected["keys"]
        assert found["skipped"] == expected["skipped"]
        assert torch.equal(found["images"], expected["images"])


def test_going_on_does_not_read_what_was_consumed(clean_shards, monkeypatch):
    source = FileSource((str(clean_shards / "00000.tar"),), 20)
    rows = list(source.epoch(0, 0, 0, 1))
    token = next(source.blocks(15, 0, 0, 0, 1))[1]
    opened = readers.open_file
    monkeypatch.setattr(readers, "open_file", lambda url, offset: Unread(opened(url, offset), token["offset"]))
    assert token["offset"] > 15 * 1024
    assert list(source.epoch(0, 0, 0, 1, token)) == rows[15:]


@pytest.mark.parametrize("readers", [(1, 0), (2, 0), (3, 2), (1, 4)])
def test_with_another_number_of_readers_no_image_comes_twice_in_an_epoch(tmp_path, photos, readers):
    for shard in range(6):
        write_shard(tmp_path / f"{shard}.tar", {f"{shard}{i:04d}": photos[i] for i in range(20)})
    first = stream(tmp_path, 1, world_size=2, shuffle_buffer=30)
    second = stream(tmp_path, 1, rank=1, world_size=2, shuffle_buffer=30)
    state = first.state
    read = []
    for images in (first, second):
        for batch in itertools.islice(loader(images), 20):
            lane, state.positions[lane] = batch["position"]
            read += batch["keys"]
    world_size, workers = readers
    state.write(tmp_path)
    for rank in range(world_size):
        images = stream(
            tmp_path, 1, rank=rank, world_size=world_size, num_workers=workers, state=StreamState.read(tmp_path)
        )
        for batch in itertools.islice(loader(images), 200):
            if batch["position"][1]["epoch"] == 0:
                read += batch["keys"]
    assert len(read) == len(set(read)) == 120


def test_more_readers_than_lanes_are_refused(clean_shards):
    state = stream(clean_shards, batch_size=8).state
    with pytest.raises(ValueError, match=r"dealt into 1 lanes .* which 6 readers"):
        stream(clean_shards, batch_size=8, world_size=3, num_workers=2, state=state)


def test_much_data_is_dealt_into_many_lanes_little_into_few(clean_shards):
    def lanes(images, readers, batch=16):
        state = StreamState.begin(FileSource(("a",), images), batch, readers, 2000)
        assert state.lanes % readers == 0 and state.block * state.lanes <= max(2000 * readers, batch * state.lanes)
        return state.lanes

    assert lanes(3_000_000, 1) == 64 and lanes(3_000_000, 32) == 64 and lanes(3_000_000, 256) == 256
    assert lanes(None, 4) == 64
    assert lanes(1_000, 1) == 7 and lanes(100, 4) == 4


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


def test_a_hub_that_cannot_be_reached_and_statistics_that_are_broken(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"--train_data 'owner/images' is no folder here .*HF_HUB_OFFLINE is set"):
        find_source("owner/images")
    write_shard(tmp_path / "0.tar", {"0.jpg": encoded(photographs(1)[0])})
    for content in ("{", "{}", "[]"):
        (tmp_path / "0_stats.json").write_text(content)
        assert find_source(str(tmp_path)).images == 1
