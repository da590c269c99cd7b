"""What the notebooks share. Imports point up this list only (`make lint` holds them to it).

errors, hardware, keys, config     what this machine is, and what a recipe may say
files, process                     written whole, by one process; quiet, with one line of progress
stack, runs                        what is installed, which way a run goes; the run folder
answers/  stats                    read and compare an answer; what a difference shows
tasks/                             data sets become problems, problems become prompts
rewards/                           what a completion is paid, by rule
judge                              a language model behind an API as one more reward
memory                             what a run takes, planned before it starts
adapters                           what stands in an adapter's folder, and must
models, engines                    a policy to train; completions from vLLM or transformers
preflight                          do the rewards tell completions apart
plots/                             figures and widgets
training/                          TRL's GRPOTrainer, and the callbacks of 03_training
evaluation/                        ask, grade, compare, and compute again without the model
learned                            a reward model, trained on preference pairs
scratch/                           GRPO in the open, for 07_grpo_from_scratch
export/                            merge, GGUF, Ollama, certificate, Hub, servers, a page
notebook, report                   tables, the page
doctor, suite, sweep               before a run, a recipe's whole chain, and many runs
"""
