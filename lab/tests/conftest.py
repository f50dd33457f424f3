"""The laboratory's tests share the fixtures of the lesson's: a toy text, teachers, run_script."""
from conftest import *  # noqa: F403
