"""Which split a folder or a key is of, by its name."""

from __future__ import annotations

import re

# The words that Hugging Face ``datasets`` goes by.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}

# "trainA" and "TestSet" are two words, "TRAIN" is one.
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_SUFFIX = re.compile(r"(?<=.)(sets?|data|images?|imgs?)$")


def split_of(name: str) -> str | None:
    """The split that a name is of: "train" for "train", "Training", "seg_train", "train2017", "trainset" or "x_train".

    Words are parted by case and by whatever is no letter. A name of no split, or of several, is of none.
    """
    words = (_SUFFIX.sub("", word.lower()) for word in _WORD.findall(name))
    found = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def is_plain(name: str) -> bool:
    """Whether a name says its split and nothing else."""
    return name.lower() in _SPLIT_OF
