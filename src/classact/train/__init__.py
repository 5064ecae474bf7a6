"""The training loop, and the steps of representation learning and of heads."""
