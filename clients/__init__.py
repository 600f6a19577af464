"""What runs on a device: the learner, and the bridge that connects it to Flower."""
