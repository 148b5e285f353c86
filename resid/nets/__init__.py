"""Networks and what is attached to layers of networks: modules with state, on top of the mathematics in `theory`."""
