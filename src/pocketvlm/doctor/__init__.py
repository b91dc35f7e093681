"""The doctor: reads a model that somebody has, and says which known faults it has. No torch, no llama.cpp, no network."""
