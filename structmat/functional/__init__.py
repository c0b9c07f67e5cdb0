"""Pure tensor functions with gradients, usable without any class."""
