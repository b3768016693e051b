"""Images and event frames: what files hold, how they become tensors, and how batches of them are read."""
