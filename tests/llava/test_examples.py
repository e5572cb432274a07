"""Examples: padded images, skipped ones, batches and their order."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dcr_hf.data.bad_images import WINDOW
from dcr_hf.llava.conversations import IGNORED
from dcr_hf.llava.examples import Examples, LengthGroups, RandomOrder, check_images, collate
from dcr_hf.llava.folder import processor_for
from dcr_hf.llava.records import read_records
from dcr_hf.llava.tower import read_tower
from helpers.images import encoded, photographs, png_claiming
from helpers.tiny_llava import turns, write_data
from helpers.tiny_models import MEAN, STD


@pytest.fixture(scope="module")
def processor(towers):
    from helpers.tiny_llava import llama_tokenizer

    tokenizer = llama_tokenizer()
    tokenizer.add_tokens(["<image>", "<pad>"], special_tokens=True)
    tokenizer.pad_token = "<pad>"
    return processor_for(read_tower(str(towers["siglip-224"])), tokenizer, pads=True)


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data")


def examples(data, processor, captions=False, max_length=2048, max_bad_fraction=0.1):
    name = "align" if captions else "instruct"
    records = read_records(str(data[f"{name}_data"]), captions, max_bad_fraction)
    folder = str(data[f"{name}_images"])
    return Examples(records, folder, processor, 256, max_length, max_bad_fraction, f"--{name}_images")


def test_images_are_padded_to_a_square_in_the_mean_colour(data, processor):
    image = np.zeros((32, 96, 3), dtype=np.uint8)
    Image.fromarray(image).save(data["instruct_images"] / "coco" / "0.jpg")
    pixels = examples(data, processor)[0]["pixel_values"]  # (3, 224, 224)
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD))
    padding = (mean * 255).floor() / 255
    for rows in (slice(0, 70), slice(154, 224)):
        torch.testing.assert_close(pixels[:, rows], ((padding - mean) / std).expand(3, 70, 224), atol=1e-5, rtol=0)
    black = (-mean / std).expand(3, 60, 224)
    torch.testing.assert_close(pixels[:, 82:142], black, atol=0.02, rtol=0)


def test_a_text_alone_has_no_image(data, processor):
    example = examples(data, processor)[3]
    assert example["pixel_values"] is None and processor.image_token_id not in example["input_ids"]
    assert examples(data, processor)[0]["input_ids"].count(processor.image_token_id) == 256


BAD = {
    "missing": None,
    "empty": b"",
    "not an image": b"<html>",
    "truncated": encoded(photographs(3)[2])[:900],
    "too many pixels": png_claiming(50_000, 50_000),
    "too small": encoded(photographs(1)[0].resize((15, 300))),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_image_is_counted_and_the_next_with_an_image_takes_its_place(data, processor, reason):
    file = data["instruct_images"] / "coco" / "2.jpg"
    if BAD[reason] is None:
        file.unlink()
    else:
        file.write_bytes(BAD[reason])
    of_all = examples(data, processor)
    found, expected = of_all[2], of_all[4]  # the third is of text alone
    assert found["skipped"] == [(reason, "t2")] and expected["skipped"] == []
    assert found["input_ids"] == expected["input_ids"]
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], rtol=0, atol=0)


def test_what_is_cut_off_is_counted_too(data, processor):
    records = json.loads(data["instruct_data"].read_text())
    records[0]["conversations"] = turns("cat " * 300, "a", "<image>", "b")
    records[1]["conversations"] = turns("<image>" + "cat " * 3000, "a")
    data["instruct_data"].write_text(json.dumps(records))
    found = examples(data, processor, max_length=700)[0]
    assert found["skipped"] == [("image beyond the length", "t0"), ("no answer within the length", "t1")]


def test_too_many_bad_images_end_the_run(data, processor):
    for number in range(0, 12, 2):
        (data["align_images"] / "coco" / f"{number}.jpg").unlink()
    of_all = examples(data, processor, captions=True, max_bad_fraction=0.4)
    with pytest.raises(ValueError, match=r"500 of the last 1000 .* missing .* Is --align_images what you meant\?"):
        for _ in range(WINDOW):
            of_all[0]
    of_all = examples(data, processor, captions=True, max_bad_fraction=0.6)
    assert all(of_all[0]["skipped"] == [("missing", "c0")] for _ in range(WINDOW))


def test_no_usable_image_at_all_is_an_error_and_not_an_endless_search(data, processor):
    for file in (data["align_images"] / "coco").iterdir():
        file.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"none of 12 conversations like 'c5' .* not an image\. Are --align_images"):
        examples(data, processor, captions=True, max_bad_fraction=0.1)[5]


def test_the_folder_of_the_images_is_checked_before_anything_else(data, tmp_path):
    records = read_records(str(data["align_data"]), captions=True, max_bad_fraction=0.1)
    check_images(records, str(data["align_images"]), "align_images")
    with pytest.raises(ValueError, match="--align_images is needed: the folder that image paths such as"):
        check_images(records, None, "align_images")
    with pytest.raises(FileNotFoundError, match="is no folder"):
        check_images(records, str(tmp_path / "nowhere"), "align_images")
    with pytest.raises(FileNotFoundError, match=r"holds none of the first 12 images, such as 'coco/0\.jpg'"):
        check_images(records, str(tmp_path), "align_images")


def test_a_batch_is_padded_on_the_right_and_has_the_images_of_those_that_have_one(data, processor):
    of_all = examples(data, processor)
    items = [of_all[index] for index in (0, 3, 1)]
    batch = collate(processor.tokenizer.pad_token_id)(items)
    lengths = [len(item["input_ids"]) for item in items]
    assert batch["input_ids"].shape == batch["labels"].shape == (3, max(lengths))
    assert batch["attention_mask"].sum(dim=1).tolist() == lengths
    for row, item in enumerate(items):
        assert batch["input_ids"][row].tolist()[: lengths[row]] == item["input_ids"]
        assert batch["labels"][row].tolist()[: lengths[row]] == item["labels"]
        assert set(batch["input_ids"][row].tolist()[lengths[row] :]) <= {processor.tokenizer.pad_token_id}
        assert set(batch["labels"][row].tolist()[lengths[row] :]) <= {IGNORED}
    torch.testing.assert_close(batch["pixel_values"][1], items[2]["pixel_values"])
    assert len(batch["pixel_values"]) == 2
    assert collate(0)([items[1]])["pixel_values"] is None


def test_steps_are_of_one_modality_and_their_batches_about_equally_long():
    generator = np.random.default_rng(0)
    lengths = [int(length) for length in generator.integers(1, 500, 61)] + [
        -int(length) for length in generator.integers(1, 500, 30)
    ]
    order = list(LengthGroups(lengths, batch_size=4, batches=3, seed=0))
    assert sorted(order) == list(range(91))
    steps = [order[start : start + 12] for start in range(0, len(order), 12)]
    assert [len(step) for step in steps] == [12] * 7 + [7]
    assert [len({lengths[index] > 0 for index in step}) for step in steps] == [1] * 7 + [2]
    for step in steps[:-1]:
        sums = [sum(abs(lengths[index]) for index in step[start : start + 4]) for start in (0, 4, 8)]
        assert max(sums) - min(sums) < 500


@pytest.mark.parametrize("kind", [RandomOrder, LengthGroups])
def test_the_order_depends_on_seed_and_epoch_alone(kind):
    lengths = [number % 7 - 3 or 1 for number in range(40)]
    first, again, other = (kind(lengths, 2, 2, seed) for seed in (0, 0, 1))
    torch.manual_seed(5)
    orders = [list(first), list(again), list(other)]
    again.set_epoch(1)
    orders.append(list(again))
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]
    assert all(sorted(order) == list(range(40)) and len(first) == 40 for order in orders)


def test_one_modality_alone_can_be_grouped():
    assert sorted(LengthGroups([3, 1, 2], 2, 1, 0)) == [0, 1, 2] == sorted(LengthGroups([-3, -1, -2], 2, 1, 0))
