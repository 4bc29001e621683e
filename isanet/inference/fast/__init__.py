"""An inference-optimized copy of the network."""
