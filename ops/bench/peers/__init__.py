"""Other engines that ours is measured against, each a process with an environment of its own."""
