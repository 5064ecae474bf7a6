"""The training loop, and what one step of representation learning or of a head computes."""
