"""What the notebooks share.

    answers/     read an answer out of a completion, and compare it with the gold one
    tasks/       data sets become problems, problems become prompts
    rewards/     what a completion is paid, by rule
    learned      a reward model, trained on preference pairs
    training/    GRPO by TRL's trainer, made faster, resumable and watchable
    scratch/        GRPO and its variants in the open, as 07_grpo_from_scratch tells them
    evaluation/  answers to held-out problems, and the statistics of a difference
    plots/       figures and widgets

Beside them: what a recipe may say (`config`), the run folder (`runs`), models, engines, memory,
and the runner of whole chains (`suite`) with the kernels that it forks (`kernels`).
"""
