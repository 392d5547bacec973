"""The teacher store: a Zarr v3 group per model, described in docs/store-format.md."""

from logitbank.storage.teacher_store.encodings import Encoding
from logitbank.storage.teacher_store.examples import ExampleRecord, ExampleTable
from logitbank.storage.teacher_store.layout import plan_shards
from logitbank.storage.teacher_store.opening import open_store
from logitbank.storage.teacher_store.read_ahead import ViewRead, read_ahead
from logitbank.storage.teacher_store.reader import TeacherStore
from logitbank.storage.teacher_store.rows import TeacherRows, concatenate, log_tail_of
from logitbank.storage.teacher_store.samples import LOG_MASS_FLOOR, MOST_DRAWS, SIGNALS, bytes_of_draws
from logitbank.storage.teacher_store.spec import StoreInfo, StoreSpec
from logitbank.storage.teacher_store.verify import verify
from logitbank.storage.teacher_store.views import BOUNDABLE, OtherTeacher, OwnSequences, Tokens
from logitbank.storage.teacher_store.vocabulary import Vocabulary
from logitbank.storage.teacher_store.writer import StoreBuilder, open_builder

__all__ = [
    "BOUNDABLE",
    "LOG_MASS_FLOOR",
    "MOST_DRAWS",
    "SIGNALS",
    "Encoding",
    "ExampleRecord",
    "ExampleTable",
    "OtherTeacher",
    "OwnSequences",
    "StoreBuilder",
    "StoreInfo",
    "StoreSpec",
    "TeacherRows",
    "TeacherStore",
    "Tokens",
    "ViewRead",
    "Vocabulary",
    "bytes_of_draws",
    "concatenate",
    "log_tail_of",
    "open_builder",
    "open_store",
    "plan_shards",
    "read_ahead",
    "verify",
]
