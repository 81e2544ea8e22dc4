"""Train the network that repairs hit sources."""
