"""Networks: image encoders and policy heads."""
