"""Run the teacher once; train every student from its cached logits."""

__version__ = "0.1.0"
