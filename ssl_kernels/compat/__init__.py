"""Drop-ins: one module a peer, with the names and signatures that its users call. None imports the peer."""
