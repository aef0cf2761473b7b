"""What X and y may be, and how a batch of them reaches the network."""
