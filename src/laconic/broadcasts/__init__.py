"""How the server's model reaches the workers. One file is one entry."""
