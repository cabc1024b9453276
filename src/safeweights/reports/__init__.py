"""What the program knows about a model, as data; the command line only draws it."""
