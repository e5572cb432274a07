"""Replies on disk, one JSON line an item as they come: a killed run goes on, and another process's share is seen."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from accelerate import PartialState
from tqdm import tqdm

from dcr_hf.errors import UserError, as_user_error
from dcr_hf.evaluation.embedding.store import key
from dcr_hf.evaluation.scoring.results import write_text, writes_to
from dcr_hf.mllm.model import Answerer
from dcr_hf.mllm.questions import QuestionSet


class ReplyStore:
    """One model's replies to one set. Every process of every run writes a file of its own, and reads all of them: what
    a killed one left counts, but for a line that it had not ended."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self) -> dict[str, str]:
        """Replies by item."""
        replies = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            *lines, _ = path.read_bytes().split(b"\n")  # what stands behind the last line's end is not whole
            for line in lines:
                with as_user_error(f"replies in {path}", json.JSONDecodeError, UnicodeDecodeError):
                    row = json.loads(line)
                replies[row["item"]] = row["reply"]
        return replies

    @contextmanager
    def writing(self) -> Iterator[TextIO]:
        with writes_to(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / f"{uuid.uuid4().hex}.jsonl").open("w", encoding="utf-8")
        with file:
            yield file


def reply_store(model: Answerer, data: QuestionSet, cache_dir: Path) -> ReplyStore:
    """Where the replies are: another folder as soon as the model, the data or a prompt is another."""
    identity = {name: value for name, value in model.identity.items() if name != "path"}
    prompts = [[question.item, question.prompt] for question in data.questions]
    parts = key(model=identity, data=data.title, revision=data.revision, prompts=prompts)
    return ReplyStore(cache_dir / "replies" / parts)


def ask(model: Answerer, data: QuestionSet, cache_dir: Path) -> dict[str, str]:
    """The model's replies by item: what earlier runs left, and now the rest. Called by every process: each asks its
    share, and all get all replies. `cache_dir` must be one folder for all."""
    state = PartialState()
    store = reply_store(model, data, cache_dir)
    known = store.read()
    pending = [place for place, question in enumerate(data.questions) if question.item not in known]
    state.wait_for_everyone()  # nobody writes before everybody has looked: the shares must not overlap
    mine = pending[state.process_index :: state.num_processes]
    if pending and state.is_main_process:  # for people who look at the cache
        facts = {"model": model.identity, "data": data.title, "source": data.source, "revision": data.revision}
        write_text(store.folder / "about.json", json.dumps(facts, indent=1))
    if mine:
        _ask_share(model, data, store, mine, len(data.questions) - len(pending), state)
    state.wait_for_everyone()
    replies = store.read()
    lacking = [question.item for question in data.questions if question.item not in replies]
    if lacking:
        raise UserError(
            f"{data.title}: {len(lacking)} replies of {model.name} are not in {store.folder}, such as that to "
            f"{lacking[0]}. --cache_dir must be one folder for all processes, also of several machines."
        )
    return replies


def _ask_share(
    model: Answerer, data: QuestionSet, store: ReplyStore, mine: list[int], known: int, state: PartialState
) -> None:
    answers, done = model.answer(data, mine), known // state.num_processes
    bar = tqdm(
        total=done + len(mine),
        initial=done,
        desc=f"{model.name}: {data.title}",
        unit=" replies",
        disable=not state.is_main_process,
    )
    with store.writing() as file, bar:
        for places, replies in answers:
            for place, reply in zip(places, replies, strict=True):
                row = {"item": data.questions[place].item, "reply": reply}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            bar.update(len(places))
