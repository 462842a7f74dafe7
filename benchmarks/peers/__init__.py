"""Other code for the same training, written anew to compare speed with."""
