"""What is trained: backbones, heads and the start at the features."""
