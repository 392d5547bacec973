"""The teacher store: a Zarr v3 group per model, described in docs/store-format.md."""

from logitbank.storage.teacher_store.base import lay_out, planned_of, write_planned
from logitbank.storage.teacher_store.columns import ExampleColumns
from logitbank.storage.teacher_store.encodings import Encoding
from logitbank.storage.teacher_store.examples import ExampleRecord, ExampleTable
from logitbank.storage.teacher_store.layout import ShardPlan, plan_shards
from logitbank.storage.teacher_store.opening import open_store
from logitbank.storage.teacher_store.read_ahead import ViewRead, read_ahead
from logitbank.storage.teacher_store.reader import TeacherStore
from logitbank.storage.teacher_store.rows import TeacherRows, concatenate, log_tail_of
from logitbank.storage.teacher_store.samples import LOG_MASS_FLOOR, MOST_DRAWS, SIGNALS, bytes_of_draws
from logitbank.storage.teacher_store.spec import PlannedExamples, StoreInfo, StoreSpec
from logitbank.storage.teacher_store.verify import verify
from logitbank.storage.teacher_store.views import BOUNDABLE, OtherTeacher, OwnSequences, Tokens
from logitbank.storage.teacher_store.vocabulary import Vocabulary
from logitbank.storage.teacher_store.writer import BuildSite, StoreBuilder, open_builder, open_site

__all__ = [
    "BOUNDABLE",
    "LOG_MASS_FLOOR",
    "MOST_DRAWS",
    "SIGNALS",
    "BuildSite",
    "Encoding",
    "ExampleColumns",
    "ExampleRecord",
    "ExampleTable",
    "OtherTeacher",
    "OwnSequences",
    "PlannedExamples",
    "ShardPlan",
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
    "lay_out",
    "log_tail_of",
    "open_builder",
    "open_site",
    "open_store",
    "plan_shards",
    "planned_of",
    "read_ahead",
    "verify",
    "write_planned",
]
