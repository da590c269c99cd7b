"""Where load_problems was; it is in lib.tasks."""

from lib.tasks import load_problems as load_problems
