"""Private: perceptrons with hand-written derivatives, batched over networks."""
