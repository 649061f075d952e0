"""What is added to f and has a proximal operator. One file is one entry."""
