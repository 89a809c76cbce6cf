"""The split that the name of a folder or of a key stands for."""

import re

# The words that Hugging Face ``datasets`` recognises.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}

# "trainA" and "TestSet" are two words, "TRAIN" is one.
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_LABELS = {"y", "label", "labels", "target", "targets", "class", "classes"}

_SUFFIX = re.compile(r"(?<=.)(sets?|data|images?|imgs?)$")


def split_of(name: str) -> str | None:
    """The split of a name: ``"train"`` for train, Training, seg_train, train2017, trainset or x_train.

    Case and anything but letters separate words. A name with words of no split, or of several, gives None.
    """
    words = (_SUFFIX.sub("", word.lower()) for word in _WORD.findall(name))
    found = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
    return found.pop() if len(found) == 1 else None


def is_of_labels(name: str) -> bool:
    """Whether a key names labels: y, train_labels, y_test, test_targets."""
    return any(word.lower() in _LABELS for word in _WORD.findall(name))


def is_plain(name: str) -> bool:
    """Whether a name is the word for a split and nothing else."""
    return name.lower() in _SPLIT_OF
