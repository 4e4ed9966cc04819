"""What hides the data of a client from those who see what it has sent."""
