"""ToyStreets: street scenes drawn from a seed, with exact masks."""
