"""Training and evaluation of a language model on bytes, with checkpoints, figures and plots."""
