"""A language model's tokenizer, to make the ids that LLaVA's own code makes."""

import logging
from pathlib import Path
from typing import cast

import sentencepiece
from tokenizers.models import BPE
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase

from dcr_hf.errors import as_user_error
from dcr_hf.models.reading import SIDE_FILE_ERRORS, read_json

logger = logging.getLogger(__name__)


def read_tokenizer(who: str, folder: Path, **options) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder, as transformers reads it, but for a Llama's:

    - `legacy` (a space after each special token) is true where the file does not say, as in transformers 4, with which
      LLaVA was trained; transformers 5 takes false, and names the writer in its own files.
    - Of a lone tokenizer.model the merges have sentencepiece's order, by score: transformers 5 has the vocabulary's,
      which differs for runs of spaces.

    Both are saved with it.

    Raises:
        UserError: broken or missing files.
    """
    with as_user_error(f"{who}: tokenizer", *SIDE_FILE_ERRORS):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **options)
        if not isinstance(tokenizer, LlamaTokenizer):
            return tokenizer
        legacy = _legacy(who, folder)
        if tokenizer.legacy != legacy:
            tokenizer = cast(LlamaTokenizer, AutoTokenizer.from_pretrained(folder, **options, legacy=legacy))
        tokenizer.init_kwargs["legacy"] = tokenizer.legacy
        if (folder / "tokenizer.model").is_file() and not (folder / "tokenizer.json").is_file():
            _order_merges(tokenizer, folder / "tokenizer.model")
        return tokenizer


def _legacy(who: str, folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    config = read_json(who, file) if file.is_file() else {}
    if isinstance(config.get("legacy"), bool):
        return config["legacy"]
    if "backend" in config:  # transformers 5 wrote it
        return False
    logger.warning("%s: its tokenizer_config.json does not say `legacy`; it is true here, as LLaVA takes it.", who)
    return True


def _order_merges(tokenizer: LlamaTokenizer, file: Path) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
    scores = {pieces.id_to_piece(number): pieces.get_score(number) for number in range(pieces.get_piece_size())}
    numbered = {piece: number for number, piece in enumerate(scores)}
    splits = [
        (piece[:place], piece[place:], score)
        for piece, score in scores.items()
        for place in range(1, len(piece))
        if piece[:place] in scores and piece[place:] in scores
    ]
    # Of pieces with one score sentencepiece makes the leftmost first, so a run of spaces grows from its left end.
    splits.sort(key=lambda split: (split[2], len(split[0]), len(split[1])), reverse=True)
    merges = [(left, right) for left, right, _ in splits]
    tokenizer.backend_tokenizer.model = BPE(numbered, merges, fuse_unk=True, byte_fallback=True)
