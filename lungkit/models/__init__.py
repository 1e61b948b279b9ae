"""What is learned: architectures, search, the registry of trained versions."""
