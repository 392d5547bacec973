"""`python -m teacher_cache` is build-teacher-cache."""

from teacher_cache.build_command import main

main()
