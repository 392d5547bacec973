"""Comparisons of two answers: rows and their labels, duplicates, leaks, folds, and the tokens that a model reads."""

from logitbank.tasks.preference.packing import PairPacker
from logitbank.tasks.preference.parts import PARTS, part_of
from logitbank.tasks.preference.preparation import PreparationReport, Prepared, prepare
from logitbank.tasks.preference.reading import HUB_DEFAULT, ReadPairs, load_pairs, read_training_file

__all__ = [
    "HUB_DEFAULT",
    "PARTS",
    "PairPacker",
    "PreparationReport",
    "Prepared",
    "ReadPairs",
    "load_pairs",
    "part_of",
    "prepare",
    "read_training_file",
]
