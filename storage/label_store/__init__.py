"""The label store: pairs, folds and class logits in a Zarr v3 group, described in docs/store-format.md."""

from logitbank.storage.label_store.pairs import PairTable
from logitbank.storage.label_store.reader import LabelStore, is_label_store
from logitbank.storage.label_store.spec import LabelSpec, LabelStoreInfo, ScoredShard, Scorer
from logitbank.storage.label_store.verify import verify_labels
from logitbank.storage.label_store.writer import LabelStoreBuilder, open_label_builder

__all__ = [
    "LabelSpec",
    "LabelStore",
    "LabelStoreBuilder",
    "LabelStoreInfo",
    "PairTable",
    "ScoredShard",
    "Scorer",
    "is_label_store",
    "open_label_builder",
    "verify_labels",
]
