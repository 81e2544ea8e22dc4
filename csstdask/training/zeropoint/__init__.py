"""Train the networks that predict zero points."""
