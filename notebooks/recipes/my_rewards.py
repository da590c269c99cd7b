"""Rewards of your own, which mine.yaml names as `my_rewards.py:short`.

A reward gets lists: the prompts, the completions, and every column of the
data (`answer`, `question`, your own). It returns a number for each
completion, or None where it cannot judge.
"""

from lib.rewards import completion_texts


def short(prompts, completions, limit=40, **columns):
    """1 for an empty completion, 0.5 at `limit` characters, towards 0."""
    texts = completion_texts(completions)
    return [limit / (limit + len(text)) for text in texts]
