"""What the notebooks share: answers, rewards, statistics, engines, plots."""
