"""What things cost, measured beside what else does the same: ``classact bench``."""
