"""Every operator timed beside a plain PyTorch implementation of the same formula, and beside its floor."""
