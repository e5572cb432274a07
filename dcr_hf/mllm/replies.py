"""Replies on disk, one JSON line per item: a killed run resumes, and processes share their replies."""

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
    """One model's replies to one set. Every process of every run writes its own file and reads all files, those of
    killed runs too, without an incomplete last line."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self) -> dict[str, str]:
        """Replies by item."""
        replies = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            *lines, _ = path.read_bytes().split(b"\n")  # after the last line end: an incomplete line
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
    """The replies' store; its folder depends on the model, the data and all prompts."""
    identity = {name: value for name, value in model.identity.items() if name != "path"}
    prompts = [[question.item, question.prompt] for question in data.questions]
    parts = key(model=identity, data=data.title, revision=data.revision, prompts=prompts)
    return ReplyStore(cache_dir / "replies" / parts)


def ask(model: Answerer, data: QuestionSet, cache_dir: Path) -> dict[str, str]:
    """The model's replies by item: those of earlier runs, and now the rest. Every process calls it, asks its share and
    gets all replies; all must share one `cache_dir`."""
    state = PartialState()
    store = reply_store(model, data, cache_dir)
    known = store.read()
    pending = [index for index, question in enumerate(data.questions) if question.item not in known]
    state.wait_for_everyone()  # no rank writes before all have looked: the shares must not overlap
    mine = pending[state.process_index :: state.num_processes]
    if pending and state.is_main_process:  # for people who inspect the cache
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
            f"{lacking[0]}. --cache_dir must be one folder for all processes on all machines."
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
        for indices, replies in answers:
            rows = [
                {"item": data.questions[index].item, "reply": reply}
                for index, reply in zip(indices, replies, strict=True)
            ]
            with writes_to(store.folder):
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                file.flush()
            bar.update(len(rows))
