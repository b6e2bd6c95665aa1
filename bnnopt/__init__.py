"""Train neural networks, binary ones above all, on devices with little memory."""
